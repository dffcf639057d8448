//! Host programs that have connected and not said yet which port they want: Firecracker's handshake.
//!
//! A caller says `CONNECT PORT\n`, in its own time. What it sends after that line is for the guest and
//! stays in its socket. A caller that never gets there costs a place, and there are few: a newcomer that
//! finds none free is given that of the one who has waited longest.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;

use super::stream;

/// The most callers at a time.
pub(super) const MAX_CALLERS: usize = 64;
/// Longer than any `CONNECT PORT\n` with a few more spaces.
const MAX_LINE: usize = 32;

/// A caller.
#[derive(Debug)]
struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
}

/// All callers by their number; who came first has the lowest.
#[derive(Debug, Default)]
pub(super) struct Callers(BTreeMap<u64, Caller>);

/// What a caller's input amounts to.
#[derive(Debug)]
pub(super) enum Progress {
    /// There is no such caller, or its line is not complete.
    Waiting,
    /// It wants this port of the guest.
    Wants(UnixStream, u32),
    /// It has left, or does not speak the protocol; it is gone.
    Dismissed,
}

impl Callers {
    /// Lets a caller in as `number`, higher than all before.
    pub(super) fn add(&mut self, number: u64, stream: UnixStream) {
        if self.0.len() >= MAX_CALLERS {
            log::debug!("vsock: a caller made no CONNECT and loses its place");
            self.0.pop_first();
        }
        let line = Vec::new();
        self.0.insert(number, Caller { stream, line });
    }

    /// Whether `number` is one of them.
    pub(super) fn contains(&self, number: u64) -> bool {
        self.0.contains_key(&number)
    }

    /// Caller `number` has said something.
    pub(super) fn listen(&mut self, number: u64) -> Progress {
        let Some(caller) = self.0.get_mut(&number) else {
            return Progress::Waiting;
        };
        let complete = match caller.read() {
            Ok(false) => return Progress::Waiting,
            Ok(true) => parse(&caller.line),
            Err(Rude) => None,
        };
        let caller = self.0.remove(&number);
        match (caller, complete) {
            (Some(caller), Some(port)) => Progress::Wants(caller.stream, port),
            _ => Progress::Dismissed,
        }
    }
}

/// A caller that has left or talks nonsense.
struct Rude;

impl Caller {
    /// Reads up to the end of the line and no further; whether it is complete.
    fn read(&mut self) -> Result<bool, Rude> {
        loop {
            let mut bytes = [0; MAX_LINE];
            let ahead = &mut bytes[..MAX_LINE - self.line.len()];
            let seen = match stream::peek(&self.stream, ahead) {
                Ok(0) => return Err(Rude),
                Ok(seen) => &mut ahead[..seen],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Err(Rude),
            };
            let end = seen.iter().position(|byte| *byte == b'\n');
            let len = end.map_or(seen.len(), |end| end + 1);
            let taken = stream::take(&self.stream, &mut seen[..len]).map_err(|_| Rude)?;
            self.line.extend(&seen[..taken]);
            if end.is_some() {
                return Ok(true);
            }
            if self.line.len() >= MAX_LINE {
                return Err(Rude);
            }
        }
    }
}

/// The port of a `CONNECT PORT` line.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (command, port) = (words.next()?, words.next()?);
    let is_all = words.next().is_none();
    (is_all && command.eq_ignore_ascii_case("connect")).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    #[test]
    fn a_line_may_come_in_any_pieces_and_what_follows_is_left() {
        let text = b"CONNECT 1234\nfor the guest";
        for size in 1..text.len() {
            let (mut ours, theirs) = pair();
            let mut callers = Callers::default();
            callers.add(7, theirs);
            let mut pieces = text.chunks(size);
            let mut stream = loop {
                match callers.listen(7) {
                    Progress::Wants(stream, port) => {
                        assert_eq!(port, 1234);
                        break stream;
                    }
                    Progress::Waiting => ours.write_all(pieces.next().unwrap()).unwrap(),
                    Progress::Dismissed => panic!("dismissed"),
                }
            };
            pieces.for_each(|piece| ours.write_all(piece).unwrap());
            drop(ours);
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "for the guest");
            assert!(!callers.contains(7));
        }
    }

    #[test]
    fn lines_are_read_as_firecracker_reads_them() {
        for (line, port) in [
            ("CONNECT 52\n", Some(52)),
            ("connect 52\r\n", Some(52)),
            ("  Connect   4294967295 \n", Some(u32::MAX)),
            ("CONNECT 4294967296\n", None),
            ("CONNECT -1\n", None),
            ("CONNECT\n", None),
            ("CONNECT 52 53\n", None),
            ("CONNECTED 52\n", None),
            ("52\n", None),
            ("\n", None),
            ("CONNECT \u{661}\n", None),
        ] {
            assert_eq!(parse(line.as_bytes()), port, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff\n"), None);
    }

    #[test]
    fn nonsense_and_leaving_end_a_call() {
        for text in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"CONNECT 52",
            b"CONNECT 00000000000000000000000000000000000052\n",
            b"",
        ] {
            let (mut ours, theirs) = pair();
            let mut callers = Callers::default();
            callers.add(1, theirs);
            ours.write_all(text).unwrap();
            ours.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(matches!(callers.listen(1), Progress::Dismissed));
            assert!(!callers.contains(1));
            assert!(matches!(callers.listen(1), Progress::Waiting));
        }
    }

    #[test]
    fn who_never_says_it_loses_its_place_to_a_newcomer() {
        let mut callers = Callers::default();
        let mut silent: Vec<_> = (0..200)
            .map(|number| {
                let (ours, theirs) = pair();
                callers.add(number, theirs);
                ours
            })
            .collect();
        assert_eq!(callers.0.len(), MAX_CALLERS);
        assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "the oldest is closed");
        silent[199].write_all(b"CONNECT 1\n").unwrap();
        assert!(matches!(callers.listen(199), Progress::Wants(_, 1)));
    }
}
