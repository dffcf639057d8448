//! The keys that are mvm's own at a terminal: what follows Ctrl-A.
//!
//! Everything else goes to the guest as typed, Ctrl-C included. A pure state machine over bytes, fed by
//! the console's input thread.

/// Ctrl-A opens a sequence.
const PREFIX: u8 = 0x01;

/// What a sequence asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// End the VM.
    End,
    /// List the keys.
    Help,
}

/// What Ctrl-A h shows.
pub const HELP: &[&str] = &[
    "Ctrl-A x       end the VM",
    "Ctrl-A h       list these keys",
    "Ctrl-A Ctrl-A  send Ctrl-A to the guest",
];

/// Takes mvm's keys out of what is typed; remembers an open sequence from one read to the next.
#[derive(Debug, Default)]
pub struct KeyFilter {
    open: bool,
}

impl KeyFilter {
    /// Appends to `guest` what of `typed` is the guest's, and reports each of mvm's keys.
    ///
    /// An unknown key after Ctrl-A is dropped with it, so that a slip types nothing into the guest.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>, mut on_key: impl FnMut(Key)) {
        for byte in typed {
            if !self.open {
                match *byte {
                    PREFIX => self.open = true,
                    byte => guest.push(byte),
                }
                continue;
            }
            self.open = false;
            match *byte {
                b'x' | b'X' => on_key(Key::End),
                b'h' | b'H' | b'?' => on_key(Key::Help),
                PREFIX => guest.push(PREFIX),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds each read in turn; gives what reached the guest and the keys.
    fn feed(reads: &[&[u8]]) -> (Vec<u8>, Vec<Key>) {
        let (mut filter, mut guest, mut keys) = (KeyFilter::default(), Vec::new(), Vec::new());
        for read in reads {
            filter.filter(read, &mut guest, |key| keys.push(key));
        }
        (guest, keys)
    }

    #[test]
    fn ordinary_bytes_pass_untouched() {
        let all: Vec<u8> = (2..=255).chain([0]).collect();
        assert_eq!(feed(&[&all]), (all, vec![]));
    }

    #[test]
    fn sequences_are_taken_out() {
        assert_eq!(feed(&[b"ab\x01xcd"]), (b"abcd".to_vec(), vec![Key::End]));
        assert_eq!(
            feed(&[b"\x01h\x01?\x01X"]),
            (vec![], vec![Key::Help, Key::Help, Key::End])
        );
    }

    #[test]
    fn a_sequence_may_span_reads() {
        assert_eq!(
            feed(&[b"a\x01", b"", b"xb"]),
            (b"ab".to_vec(), vec![Key::End])
        );
    }

    #[test]
    fn ctrl_a_twice_sends_one() {
        assert_eq!(feed(&[b"\x01\x01"]), (vec![1], vec![]));
        assert_eq!(feed(&[b"\x01", b"\x01x"]), (b"\x01x".to_vec(), vec![]));
        assert_eq!(feed(&[b"\x01\x01\x01x"]), (vec![1], vec![Key::End]));
    }

    #[test]
    fn an_unknown_key_types_nothing() {
        assert_eq!(feed(&[b"a\x01zb"]), (b"ab".to_vec(), vec![]));
    }
}
