//! Frames: a header of four bytes (kind, stream, length as little-endian u16), then the payload.

use alloc::vec::Vec;
use core::fmt;

/// Bytes before the payload.
pub const HEADER: usize = 4;
/// The longest payload.
pub const MAX_PAYLOAD: usize = 16 * 1024;
/// Spoken by both ends; a change of anything here changes it.
pub const VERSION: u8 = 1;

/// A standard stream of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Host to guest. At a terminal: what is typed.
    Stdin = 0,
    /// Guest to host. At a terminal: all of its output.
    Stdout = 1,
    /// Guest to host.
    Stderr = 2,
}

impl Stream {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stdin, Self::Stdout, Self::Stderr];

    fn from_byte(byte: u8) -> Result<Self, Malformed> {
        Self::ALL
            .into_iter()
            .find(|stream| *stream as u8 == byte)
            .ok_or(Malformed("a stream that does not exist"))
    }
}

/// What is said beside the streams themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Guest: init is there and speaks [`VERSION`].
    Hello {
        /// The version it speaks.
        version: u8,
    },
    /// Guest: the command runs; time since the guest's kernel started, in nanoseconds.
    Started {
        /// `CLOCK_BOOTTIME`.
        uptime: u64,
    },
    /// Guest: the command does not run.
    Failed {
        /// The status that mvm ends with: 127 not found, 126 not executable, 125 anything before that.
        status: u8,
        /// Why, in one line.
        reason: Vec<u8>,
    },
    /// Guest: the command ended by itself.
    Exited {
        /// Its exit status.
        status: u8,
    },
    /// Guest: a signal ended the command.
    Killed {
        /// Its number.
        signal: u8,
    },
    /// Guest: something a person should know, in one line.
    Warning(Vec<u8>),
    /// Host: a signal for the command.
    Signal {
        /// Its number.
        signal: u8,
    },
    /// Host: the terminal's size.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Host: it has all it needs; the guest may go.
    Bye,
}

/// A frame as it is read.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Bytes of a stream.
    Data(Stream, &'a [u8]),
    /// The stream ends here.
    Eof(Stream),
    /// So many more bytes of the stream can be taken.
    Credit(Stream, u32),
    /// Nobody reads the stream any more.
    Closed(Stream),
    /// Anything else.
    Control(Control),
}

/// What no peer may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

mod kind {
    pub const DATA: u8 = 1;
    pub const EOF: u8 = 2;
    pub const CREDIT: u8 = 3;
    pub const CLOSED: u8 = 4;
    pub const HELLO: u8 = 5;
    pub const STARTED: u8 = 6;
    pub const FAILED: u8 = 7;
    pub const EXITED: u8 = 8;
    pub const KILLED: u8 = 9;
    pub const WARNING: u8 = 10;
    pub const SIGNAL: u8 = 11;
    pub const RESIZE: u8 = 12;
    pub const BYE: u8 = 13;
}

impl Frame<'_> {
    /// Appends the frame to `out`. A payload that is too long is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(stream, data) => put(out, kind::DATA, *stream as u8, &[data]),
            Self::Eof(stream) => put(out, kind::EOF, *stream as u8, &[]),
            Self::Credit(stream, bytes) => {
                put(out, kind::CREDIT, *stream as u8, &[&bytes.to_le_bytes()]);
            }
            Self::Closed(stream) => put(out, kind::CLOSED, *stream as u8, &[]),
            Self::Control(control) => control.encode(out),
        }
    }

    fn decode(kind: u8, stream: u8, payload: &[u8]) -> Result<Frame<'_>, Malformed> {
        let stream = || Stream::from_byte(stream);
        Ok(match kind {
            kind::DATA => Frame::Data(stream()?, payload),
            kind::EOF => Frame::Eof(stream()?),
            kind::CREDIT => Frame::Credit(stream()?, u32::from_le_bytes(exactly(payload)?)),
            kind::CLOSED => Frame::Closed(stream()?),
            _ => Frame::Control(Control::decode(kind, payload)?),
        })
    }
}

impl Control {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version } => put(out, kind::HELLO, 0, &[&[*version]]),
            Self::Started { uptime } => put(out, kind::STARTED, 0, &[&uptime.to_le_bytes()]),
            Self::Failed { status, reason } => put(out, kind::FAILED, 0, &[&[*status], reason]),
            Self::Exited { status } => put(out, kind::EXITED, 0, &[&[*status]]),
            Self::Killed { signal } => put(out, kind::KILLED, 0, &[&[*signal]]),
            Self::Warning(text) => put(out, kind::WARNING, 0, &[text]),
            Self::Signal { signal } => put(out, kind::SIGNAL, 0, &[&[*signal]]),
            Self::Resize { columns, rows } => put(
                out,
                kind::RESIZE,
                0,
                &[&columns.to_le_bytes(), &rows.to_le_bytes()],
            ),
            Self::Bye => put(out, kind::BYE, 0, &[]),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, Malformed> {
        let byte = || exactly::<1>(payload).map(|[byte]| byte);
        Ok(match kind {
            kind::HELLO => Self::Hello { version: byte()? },
            kind::STARTED => Self::Started {
                uptime: u64::from_le_bytes(exactly(payload)?),
            },
            kind::FAILED => {
                let (status, reason) = payload.split_first().ok_or(Malformed("no status"))?;
                Self::Failed {
                    status: *status,
                    reason: reason.to_vec(),
                }
            }
            kind::EXITED => Self::Exited { status: byte()? },
            kind::KILLED => Self::Killed { signal: byte()? },
            kind::WARNING => Self::Warning(payload.to_vec()),
            kind::SIGNAL => Self::Signal { signal: byte()? },
            kind::RESIZE => {
                let [a, b, c, d] = exactly(payload)?;
                Self::Resize {
                    columns: u16::from_le_bytes([a, b]),
                    rows: u16::from_le_bytes([c, d]),
                }
            }
            kind::BYE => Self::Bye,
            _ => return Err(Malformed("a kind of frame that does not exist")),
        })
    }
}

fn put(out: &mut Vec<u8>, kind: u8, stream: u8, parts: &[&[u8]]) {
    let start = out.len();
    out.extend_from_slice(&[kind, stream, 0, 0]);
    for part in parts {
        let room = MAX_PAYLOAD - (out.len() - start - HEADER);
        out.extend_from_slice(&part[..part.len().min(room)]);
    }
    let len = u16::try_from(out.len() - start - HEADER).unwrap_or(u16::MAX);
    out[start + 2..start + HEADER].copy_from_slice(&len.to_le_bytes());
}

fn exactly<const N: usize>(payload: &[u8]) -> Result<[u8; N], Malformed> {
    payload
        .try_into()
        .map_err(|_| Malformed("a frame of the wrong length"))
}

/// Puts frames together from pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            buffer: alloc::vec![0; 2 * (HEADER + MAX_PAYLOAD)],
            filled: 0,
            taken: 0,
        }
    }
}

impl Decoder {
    /// Room for more bytes, never empty once [`next_frame`](Self::next_frame) has given `None`.
    pub fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        &mut self.buffer[self.filled..]
    }

    /// So many bytes were put into the room.
    pub fn fill(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.buffer.len());
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// What was received is not a frame; nothing after it can be understood.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Malformed> {
        let bytes = &self.buffer[self.taken..self.filled];
        let Some((&[kind, stream, low, high], rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_le_bytes([low, high]));
        if len > MAX_PAYLOAD {
            return Err(Malformed("a frame that is too long"));
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        self.taken += HEADER + len;
        Frame::decode(kind, stream, payload).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn frames() -> Vec<Frame<'static>> {
        let controls = [
            Control::Hello { version: VERSION },
            Control::Started { uptime: 1 << 40 },
            Control::Failed {
                status: 127,
                reason: b"no such file".to_vec(),
            },
            Control::Exited { status: 3 },
            Control::Killed { signal: 9 },
            Control::Warning(b"w".to_vec()),
            Control::Signal { signal: 15 },
            Control::Resize {
                columns: 80,
                rows: 24,
            },
            Control::Bye,
        ];
        let mut frames = vec![
            Frame::Data(Stream::Stdout, b"bytes"),
            Frame::Data(Stream::Stdin, b""),
            Frame::Eof(Stream::Stderr),
            Frame::Credit(Stream::Stdin, u32::MAX),
            Frame::Closed(Stream::Stdout),
        ];
        frames.extend(controls.into_iter().map(Frame::Control));
        frames
    }

    #[test]
    fn every_frame_comes_through_in_pieces_of_any_size() {
        let mut bytes = Vec::new();
        frames().iter().for_each(|frame| frame.encode(&mut bytes));
        for size in [1, 2, 3, 7, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut expected = frames().into_iter();
            for piece in bytes.chunks(size) {
                decoder.room()[..piece.len()].copy_from_slice(piece);
                decoder.fill(piece.len());
                while let Some(frame) = decoder.next_frame().unwrap() {
                    assert_eq!(Some(frame), expected.next());
                }
            }
            assert_eq!(expected.next(), None);
        }
    }

    #[test]
    fn what_no_peer_may_say_is_refused() {
        for bytes in [
            &[0, 0, 0, 0][..],
            &[14, 0, 0, 0],
            &[kind::DATA, 3, 0, 0],
            &[kind::DATA, 0, 1, 0x40],
            &[kind::CREDIT, 0, 3, 0, 1, 2, 3],
            &[kind::EXITED, 0, 0, 0],
            &[kind::FAILED, 0, 0, 0],
        ] {
            let mut decoder = Decoder::default();
            decoder.room()[..bytes.len()].copy_from_slice(bytes);
            decoder.fill(bytes.len());
            assert!(decoder.next_frame().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_payload_that_is_too_long_is_cut() {
        let mut bytes = Vec::new();
        Frame::Control(Control::Warning(vec![b'x'; 1 << 20])).encode(&mut bytes);
        assert_eq!(bytes.len(), HEADER + MAX_PAYLOAD);
        let mut decoder = Decoder::default();
        decoder.room()[..bytes.len()].copy_from_slice(&bytes);
        decoder.fill(bytes.len());
        assert!(
            matches!(decoder.next_frame(), Ok(Some(Frame::Control(Control::Warning(text)))) if text.len() == MAX_PAYLOAD)
        );
    }
}
