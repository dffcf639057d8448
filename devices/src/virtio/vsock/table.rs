//! All connections of a device: who is who, whose turn it is, and how many there may be.
//!
//! Nothing here grows with what a guest does: connections are limited, each with a window of bytes; a
//! packet that falls due twice is sent once; and refusals are counted.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Instant;

use super::connection::{Connection, Fate};
use super::packet::{HEADER_LEN, Header, Ports};
use super::watch::Watch;
use crate::iovec::{self, IoVec};

/// The most connections at a time, with those that only have a rest to deliver.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Refusals that may wait before the guest's packets have to wait too.
pub(super) const MAX_REFUSALS: usize = 256;
/// Refusals kept in all: the host side, which causes the others, waits for nobody. A guest that misses
/// one gets another as soon as it uses the connection.
const REFUSALS_KEPT: usize = 2 * MAX_CONNECTIONS;

/// The connections.
#[derive(Debug)]
pub(super) struct Table {
    guest_cid: u64,
    /// By their number, which no two ever share.
    connections: HashMap<u64, Connection>,
    /// The numbers of those that the guest knows.
    by_ports: HashMap<Ports, u64>,
    /// Those that may have a packet for the guest, in the order of their turns.
    line: VecDeque<u64>,
    /// RST packets. They go first.
    refusals: VecDeque<Header>,
}

impl Table {
    pub(super) fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            line: VecDeque::new(),
            refusals: VecDeque::new(),
        }
    }

    /// Whether there can be no further connection.
    pub(super) fn is_full(&self) -> bool {
        self.connections.len() >= MAX_CONNECTIONS
    }

    /// The number of the connection between these ports.
    pub(super) fn number(&self, ports: Ports) -> Option<u64> {
        self.by_ports.get(&ports).copied()
    }

    /// Whether the guest may be given cause for a further refusal.
    pub(super) fn has_room_for_refusals(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// Queues an RST packet.
    pub(super) fn refuse(&mut self, rst: Header) {
        if self.refusals.len() < REFUSALS_KEPT {
            self.refusals.push_back(rst);
        }
    }

    /// Adds a connection, whose socket is watched under this number.
    pub(super) fn add(
        &mut self,
        number: u64,
        connection: Connection,
        watch: &mut Watch,
    ) -> io::Result<()> {
        self.by_ports.insert(connection.ports, number);
        let connection = self.connections.entry(number).or_insert(connection);
        settle(connection, number, &mut self.line, watch)
    }

    /// Does something to a connection, if it still exists, and draws the conclusions.
    ///
    /// # Errors
    /// The connection cannot be watched any more.
    pub(super) fn change(
        &mut self,
        number: u64,
        watch: &mut Watch,
        change: impl FnOnce(&mut Connection) -> Fate,
    ) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else {
            return Ok(());
        };
        let fate = change(connection);
        if fate == Fate::Lives {
            return settle(connection, number, &mut self.line, watch);
        }
        if fate != Fate::Gone {
            let rst = connection.rst(self.guest_cid);
            self.refuse(rst);
        }
        self.forget(number);
        match self.connections.get_mut(&number) {
            Some(connection) if fate == Fate::Detach => {
                connection.detach();
                settle(connection, number, &mut self.line, watch)
            }
            _ => {
                self.connections.remove(&number);
                Ok(())
            }
        }
    }

    /// Lets the guest's side of a connection go: its ports may be used again.
    fn forget(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if std::mem::take(&mut connection.in_line) {
            self.line.retain(|other| *other != number);
        }
        let ports = connection.ports;
        if self.by_ports.get(&ports) == Some(&number) {
            self.by_ports.remove(&ports);
        }
    }

    /// Ends what has lasted too long; whether there are deadlines left.
    pub(super) fn expire(&mut self, now: Instant, watch: &mut Watch) -> io::Result<bool> {
        let is_late = |connection: &Connection| connection.deadline.is_some_and(|at| at <= now);
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| is_late(connection))
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            self.change(number, watch, |connection| connection.expire())?;
        }
        let mut left = self.connections.values();
        Ok(left.any(|connection| connection.deadline.is_some()))
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.refusals.is_empty() || !self.line.is_empty()
    }

    /// Puts the next packet into `buffers`, which have room for a header and some data; its length.
    pub(super) fn next_packet(
        &mut self,
        buffers: &[IoVec<'_>],
        watch: &mut Watch,
    ) -> io::Result<Option<u32>> {
        if let Some(rst) = self.refusals.pop_front() {
            iovec::scatter(buffers, 0, &rst.to_bytes());
            return Ok(Some(HEADER_LEN));
        }
        while let Some(number) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&number) else {
                continue;
            };
            connection.in_line = false;
            let packet = connection.next_packet(buffers);
            if let Some(packet) = packet {
                let header = connection.header(packet, self.guest_cid);
                iovec::scatter(buffers, 0, &header.to_bytes());
            }
            // Behind the others, if it has more.
            settle(connection, number, &mut self.line, watch)?;
            if let Some(packet) = packet {
                return Ok(Some(HEADER_LEN.saturating_add(packet.len)));
            }
        }
        Ok(None)
    }
}

/// Brings what is known of a connection outside of it in line with it.
fn settle(
    connection: &mut Connection,
    number: u64,
    line: &mut VecDeque<u64>,
    watch: &mut Watch,
) -> io::Result<()> {
    let wants_room = connection.wants_room();
    if wants_room != connection.watched_for_room {
        watch.set_room(number, &connection.stream, wants_room)?;
        connection.watched_for_room = wants_room;
    }
    if connection.deadline.is_none()
        && let Some(limit) = connection.limit()
    {
        connection.deadline = Instant::now().checked_add(limit);
        watch.tick_soon()?;
    }
    if !connection.in_line && connection.has_packet() {
        connection.in_line = true;
        line.push_back(number);
    }
    Ok(())
}

#[cfg(test)]
impl Table {
    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Bytes kept for all of them, and packets that wait for the guest.
    pub(super) fn kept(&self) -> (u64, usize) {
        let bytes = self.connections.values().map(|one| u64::from(one.kept()));
        (bytes.sum(), self.line.len() + self.refusals.len())
    }
}
