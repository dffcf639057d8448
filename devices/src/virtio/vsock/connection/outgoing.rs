//! What a connection has for the guest: the answers and news that are due, and the host's data.

use super::{Connection, Owed, Phase};
use crate::iovec::{self, IoVec, IoVecs};
use crate::virtio::vsock::packet::{Done, HEADER, HOST_CID, Header, Op, STREAM};
use crate::virtio::vsock::stream::{self, Found};

/// What a packet for the guest is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub op: Op,
    pub flags: u32,
    pub len: u32,
}

impl Packet {
    fn bare(op: Op) -> Self {
        Self {
            op,
            flags: 0,
            len: 0,
        }
    }
}

impl Connection {
    /// Whether there may be data for the guest, if it has room.
    pub fn has_input(&self) -> bool {
        self.phase == Phase::Open && self.readable && !self.host_done.contains(Done::SENDING)
    }

    /// Whether there may be a packet for the guest.
    pub fn has_packet(&self) -> bool {
        self.told != self.host_done
            || !self.owed.is_empty()
            || self.has_input() && self.credit.free() > 0
    }

    /// The next packet for the guest; its data, if any, is put into `buffers` behind the place of the
    /// header.
    pub fn next_packet(&mut self, buffers: &[IoVec<'_>]) -> Option<Packet> {
        for (due, op) in [(Owed::REQUEST, Op::Request), (Owed::RESPONSE, Op::Response)] {
            if self.owed.contains(due) {
                self.owed -= due;
                return Some(Packet::bare(op));
            }
        }
        if let Some(packet) = self.read(buffers) {
            return Some(packet);
        }
        for (due, op) in [
            (Owed::CREDIT_UPDATE, Op::CreditUpdate),
            (Owed::CREDIT_REQUEST, Op::CreditRequest),
        ] {
            if self.owed.contains(due) {
                self.owed -= due;
                return Some(Packet::bare(op));
            }
        }
        None
    }

    /// Data from the socket, or the news of its end.
    fn read(&mut self, buffers: &[IoVec<'_>]) -> Option<Packet> {
        loop {
            if self.told != self.host_done {
                self.told = self.host_done;
                return Some(Packet {
                    flags: self.told.bits(),
                    ..Packet::bare(Op::Shutdown)
                });
            }
            let free = self.credit.free();
            if !self.has_input() || free == 0 {
                return None;
            }
            let limit = usize::try_from(free).unwrap_or(usize::MAX);
            let mut room = IoVecs::from_slice(buffers);
            let room = iovec::truncate(&mut room, HEADER.saturating_add(limit));
            let found = stream::receive(&self.stream, iovec::skip(room, HEADER));
            self.readable = match found {
                Ok(Found::Some(_)) => true,
                Ok(Found::Last(_)) => self.end_announced,
                _ => false,
            };
            match found {
                Ok(Found::Some(count) | Found::Last(count)) => {
                    // No more than `free`.
                    let len = u32::try_from(count).unwrap_or(0);
                    self.credit.send(len);
                    self.settle();
                    return Some(Packet {
                        len,
                        ..Packet::bare(Op::Rw)
                    });
                }
                Ok(Found::Nothing) => {
                    self.end_announced = false;
                    return None;
                }
                Ok(Found::End) => self.host_done |= Done::SENDING,
                // A peer that left with bytes unread, for one.
                Err(_) => {
                    self.host_done |= Done::SENDING;
                    self.host_takes_no_more();
                }
            }
            self.settle();
        }
    }

    /// The header of `packet`, which goes to the guest `cid` now.
    pub fn header(&mut self, packet: Packet, cid: u64) -> Header {
        // Every packet tells the room there is.
        self.owed -= Owed::CREDIT_UPDATE;
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: packet.len,
            kind: STREAM,
            op: packet.op as u16,
            flags: packet.flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// The packet that ends the connection for the guest.
    pub fn rst(&mut self, cid: u64) -> Header {
        self.header(Packet::bare(Op::Rst), cid)
    }
}
