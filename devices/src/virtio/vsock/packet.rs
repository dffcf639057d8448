//! The header of a vsock packet, Virtio 1.2 §5.10.6. Pure: bytes in, bytes out.

use bitflags::bitflags;

/// Bytes of `struct virtio_vsock_hdr`.
pub(crate) const HEADER: usize = 44;
/// [`HEADER`], as the used ring counts.
pub(crate) const HEADER_LEN: u32 = 44;
/// §5.10.4: the host's address.
pub(crate) const HOST_CID: u64 = 2;
/// §5.10.6, VIRTIO_VSOCK_TYPE_STREAM: the only type there is without further features.
pub(crate) const STREAM: u16 = 1;

/// What a packet is for, §5.10.6: VIRTIO_VSOCK_OP_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// There is no such connection, or no longer.
    Rst = 3,
    /// One or both directions are at their end.
    Shutdown = 4,
    /// Data.
    Rw = 5,
    /// Tells the sender's room.
    CreditUpdate = 6,
    /// Asks for the receiver's room.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number, if there is one.
    pub(crate) fn of(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

bitflags! {
    /// What the sender of a SHUTDOWN packet does no more, for good (§5.10.6.6).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Done: u32 {
        /// It receives no more.
        const RECEIVING = 1;
        /// It sends no more.
        const SENDING = 2;
    }
}

/// The two ends of a connection, seen from neither. All that names it, since each device has one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) guest: u32,
    pub(crate) host: u32,
}

/// A header as it stands in a packet; from the guest, believed by nobody yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    /// Bytes of data after the header.
    pub(crate) len: u32,
    /// `type`.
    pub(crate) kind: u16,
    /// An [`Op`].
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// Bytes that the sender has room for in all.
    pub(crate) buf_alloc: u32,
    /// Bytes that the sender has taken out of that room, ever; wraps around.
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// The ports, of a packet that comes from the guest.
    pub(crate) fn ports(&self) -> Ports {
        Ports {
            guest: self.src_port,
            host: self.dst_port,
        }
    }

    /// The answer to a packet that belongs to no connection.
    pub(crate) fn rst(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op: Op::Rst as u16,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// As it goes into a packet.
    pub(crate) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let rest = &mut &mut bytes[..];
        put(rest, self.src_cid.to_le_bytes());
        put(rest, self.dst_cid.to_le_bytes());
        put(rest, self.src_port.to_le_bytes());
        put(rest, self.dst_port.to_le_bytes());
        put(rest, self.len.to_le_bytes());
        put(rest, self.kind.to_le_bytes());
        put(rest, self.op.to_le_bytes());
        put(rest, self.flags.to_le_bytes());
        put(rest, self.buf_alloc.to_le_bytes());
        put(rest, self.fwd_cnt.to_le_bytes());
        bytes
    }
}

impl From<[u8; HEADER]> for Header {
    fn from(bytes: [u8; HEADER]) -> Self {
        let rest = &mut &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(next(rest)),
            dst_cid: u64::from_le_bytes(next(rest)),
            src_port: u32::from_le_bytes(next(rest)),
            dst_port: u32::from_le_bytes(next(rest)),
            len: u32::from_le_bytes(next(rest)),
            kind: u16::from_le_bytes(next(rest)),
            op: u16::from_le_bytes(next(rest)),
            flags: u32::from_le_bytes(next(rest)),
            buf_alloc: u32::from_le_bytes(next(rest)),
            fwd_cnt: u32::from_le_bytes(next(rest)),
        }
    }
}

/// Writes the next field of a header.
fn put<const N: usize>(rest: &mut &mut [u8], field: [u8; N]) {
    if let Some((place, tail)) = std::mem::take(rest).split_first_chunk_mut() {
        *place = field;
        *rest = tail;
    }
}

/// The next field of a header that is being read.
fn next<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let Some((field, tail)) = rest.split_first_chunk() else {
        return [0; N];
    };
    *rest = tail;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_44_bytes_in_this_order() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x0102_0304,
            dst_port: 0x0506_0708,
            len: 9,
            kind: STREAM,
            op: Op::Rw as u16,
            flags: 0xa0b0,
            buf_alloc: 0x1_0000,
            fwd_cnt: u32::MAX,
        };
        let bytes = header.to_bytes();
        assert_eq!(
            bytes,
            [
                3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, // src_cid, dst_cid
                4, 3, 2, 1, 8, 7, 6, 5, // src_port, dst_port
                9, 0, 0, 0, 1, 0, 5, 0, // len, type, op
                0xb0, 0xa0, 0, 0, 0, 0, 1, 0, 255, 255, 255, 255, // flags, buf_alloc, fwd_cnt
            ]
        );
        assert_eq!(Header::from(bytes), header);
        let rst = header.rst();
        assert_eq!((rst.src_cid, rst.src_port), (2, 0x0506_0708));
        assert_eq!((rst.dst_cid, rst.dst_port), (3, 0x0102_0304));
        assert_eq!(Op::of(rst.op), Some(Op::Rst));
    }

    #[test]
    fn operations_have_the_numbers_of_the_specification() {
        for number in 0..=u16::MAX {
            let op = Op::of(number).map(|op| op as u16);
            assert_eq!(op, (1..=7).contains(&number).then_some(number));
        }
    }
}
