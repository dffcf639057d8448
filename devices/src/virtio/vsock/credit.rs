//! Who may send how much: the credit of a connection, Virtio 1.2 §5.10.6.3. Pure arithmetic.
//!
//! Both ends count bytes in 32 bits that wrap around. The guest's counters are whatever it says they
//! are; the worst a lie can do is to stop its own connection, or to have it sent more than it has
//! buffers for, which it then has to drop.

use super::packet::Header;

/// Bytes that the guest may send ahead of what the host side takes: what mvm keeps of a connection at
/// most. Four of the largest packets that Linux makes, so that it need not stop after each.
pub(super) const WINDOW: u32 = 256 << 10;

/// The counters of one connection.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Bytes of the guest's that the host side has taken, ever.
    forwarded: u32,
    /// What the guest last heard of that.
    told: u32,
    /// Bytes sent to the guest, ever.
    sent: u32,
    /// The guest's room in all.
    peer_alloc: u32,
    /// Bytes that the guest has taken out of its room, ever.
    peer_forwarded: u32,
}

impl Credit {
    /// A packet of the guest's came, with its counters.
    pub(super) fn hear(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// The counters to go out with a packet: `buf_alloc` and `fwd_cnt`.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (WINDOW, self.forwarded)
    }

    /// Bytes that the guest can take now.
    pub(super) fn free(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(under_way)
    }

    /// So many bytes go to the guest.
    pub(super) fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// The host side took so many bytes.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest, with `waiting` bytes not forwarded yet, believes in less than half of its
    /// room, and there is more.
    pub(super) fn is_worth_telling(&self, waiting: u32) -> bool {
        let news = self.forwarded.wrapping_sub(self.told);
        news > 0 && news.saturating_add(waiting) > WINDOW / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::vsock::packet::{Op, STREAM};

    fn says(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 1,
            dst_port: 1,
            len: 0,
            kind: STREAM,
            op: Op::CreditUpdate as u16,
            flags: 0,
            buf_alloc,
            fwd_cnt,
        }
    }

    #[test]
    fn the_guests_room_is_used_up_and_comes_back() {
        let mut credit = Credit::default();
        assert_eq!(credit.free(), 0, "nothing before it has said anything");
        credit.hear(&says(1000, 0));
        credit.send(600);
        assert_eq!(credit.free(), 400);
        credit.send(400);
        assert_eq!(credit.free(), 0);
        credit.hear(&says(1000, 700));
        assert_eq!(credit.free(), 700);
        credit.hear(&says(100, 700));
        assert_eq!(credit.free(), 0, "it has shrunk below what is under way");
    }

    #[test]
    fn counters_wrap_around() {
        let mut credit = Credit {
            sent: u32::MAX - 99,
            peer_forwarded: u32::MAX - 99,
            peer_alloc: 1000,
            forwarded: u32::MAX - 9,
            told: u32::MAX - 9,
        };
        credit.send(300);
        assert_eq!(credit.free(), 700);
        credit.hear(&says(1000, 150));
        assert_eq!(credit.free(), 950);
        credit.forward(WINDOW);
        assert!(credit.is_worth_telling(0));
        assert_eq!(credit.tell(), (WINDOW, WINDOW - 10));
        assert!(!credit.is_worth_telling(0));
    }

    #[test]
    fn lies_stop_the_liar() {
        let mut credit = Credit::default();
        credit.send(10);
        for (alloc, forwarded) in [(100, 11), (0, 10), (5, 1 << 31), (1, u32::MAX)] {
            credit.hear(&says(alloc, forwarded));
            assert_eq!(credit.free(), 0, "{alloc} {forwarded}");
        }
    }

    #[test]
    fn room_is_told_when_the_guest_believes_in_less_than_half() {
        let mut credit = Credit::default();
        assert!(!credit.is_worth_telling(WINDOW), "there is nothing new");
        credit.forward(WINDOW / 2);
        assert!(!credit.is_worth_telling(0));
        assert!(credit.is_worth_telling(1));
        credit.forward(1);
        assert!(credit.is_worth_telling(0));
    }
}
