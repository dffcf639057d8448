//! What the two ends of the lab say to each other, over one virtio-serial port: frames of a kind, a length and
//! that many bytes. One ordered stream carries the command, its input and output, the files it leaves and its
//! status, so nothing can be lost or overtaken at the end.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result, bail};

/// The name of the port, under `/sys/class/virtio-ports/*/name`.
pub const PORT: &str = "mvm.lab";

/// No frame is longer; longer data goes in several.
const LONGEST: usize = 64 * 1024;

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters up and down.
    pub rows: u16,
    /// Characters across.
    pub columns: u16,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// From the lab: it is up.
    Ready,
    /// To the lab: run this, at a terminal of this size or with plain streams.
    Run {
        /// The program and its arguments.
        argv: Vec<OsString>,
        /// The terminal's size; none means pipes.
        terminal: Option<WindowSize>,
    },
    /// To the lab: the command's input.
    Input(Vec<u8>),
    /// To the lab: the command's input ends.
    InputEnd,
    /// To the lab: the terminal changed its size.
    Resize(WindowSize),
    /// From the lab: what the command wrote to its standard output, or its terminal.
    Output(Vec<u8>),
    /// From the lab: what the command wrote to its standard error.
    Error(Vec<u8>),
    /// From the lab: a file that the command left begins; a relative path.
    File(OsString),
    /// From the lab: the next part of that file.
    FileData(Vec<u8>),
    /// From the lab: the command ended with this status, and everything else has been sent.
    Exit(u8),
    /// To the lab: everything has arrived, power off.
    Goodbye,
}

impl Frame {
    /// Sends the frame.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, body) = self.encode();
        debug_assert!(body.len() <= LONGEST, "{} bytes in one frame", body.len());
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut bytes = vec![kind];
        bytes.extend(length.to_le_bytes());
        bytes.extend(body);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Receives a frame; none when the other end has gone between two frames.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>> {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length))?;
        if length > LONGEST {
            bail!("a frame of {length} bytes");
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Self::decode(kind[0], body).map(Some)
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Ready => (b'r', Vec::new()),
            Self::Run { argv, terminal } => {
                let mut body = encode_size(terminal.unwrap_or(WindowSize {
                    rows: 0,
                    columns: 0,
                }));
                body.insert(0, u8::from(terminal.is_some()));
                for argument in argv {
                    body.extend(argument.as_bytes());
                    body.push(0);
                }
                (b'R', body)
            }
            Self::Input(data) => (b'I', data.clone()),
            Self::InputEnd => (b'E', Vec::new()),
            Self::Resize(size) => (b'W', encode_size(*size)),
            Self::Output(data) => (b'o', data.clone()),
            Self::Error(data) => (b'e', data.clone()),
            Self::File(name) => (b'f', name.as_bytes().to_vec()),
            Self::FileData(data) => (b'd', data.clone()),
            Self::Exit(status) => (b'x', vec![*status]),
            Self::Goodbye => (b'G', Vec::new()),
        }
    }

    fn decode(kind: u8, body: Vec<u8>) -> Result<Self> {
        Ok(match kind {
            b'r' => Self::Ready,
            b'R' => {
                let (head, rest) = body.split_at_checked(5).context("a short command")?;
                let words = rest.strip_suffix(b"\0").context("an empty command")?;
                Self::Run {
                    argv: words
                        .split(|byte| *byte == 0)
                        .map(|word| OsStr::from_bytes(word).to_owned())
                        .collect(),
                    terminal: (head[0] == 1)
                        .then(|| decode_size(&head[1..]))
                        .transpose()?,
                }
            }
            b'I' => Self::Input(body),
            b'E' => Self::InputEnd,
            b'W' => Self::Resize(decode_size(&body)?),
            b'o' => Self::Output(body),
            b'e' => Self::Error(body),
            b'f' => Self::File(OsString::from_vec(body)),
            b'd' => Self::FileData(body),
            b'x' => Self::Exit(*body.first().context("an exit without a status")?),
            b'G' => Self::Goodbye,
            _ => bail!("a frame of the unknown kind {kind:#x}"),
        })
    }
}

fn encode_size(size: WindowSize) -> Vec<u8> {
    [size.rows.to_le_bytes(), size.columns.to_le_bytes()].concat()
}

fn decode_size(bytes: &[u8]) -> Result<WindowSize> {
    let [a, b, c, d] = bytes
        .try_into()
        .context("a window size of the wrong length")?;
    Ok(WindowSize {
        rows: u16::from_le_bytes([a, b]),
        columns: u16::from_le_bytes([c, d]),
    })
}

/// Reads `from` to its end, handing on pieces that fit a frame.
pub fn pump(
    from: &mut impl Read,
    mut send: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST / 2];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => send(buffer[..count].to_vec())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_arrives_as_it_was_sent() {
        let size = WindowSize {
            rows: 24,
            columns: 300,
        };
        let frames = [
            Frame::Ready,
            Frame::Run {
                argv: vec![
                    "sh".into(),
                    "".into(),
                    OsString::from_vec(b"a b\n\xff'".to_vec()),
                ],
                terminal: None,
            },
            Frame::Run {
                argv: vec!["sh".into()],
                terminal: Some(size),
            },
            Frame::Input(b"\r\n\0".to_vec()),
            Frame::InputEnd,
            Frame::Resize(size),
            Frame::Output(vec![0; LONGEST]),
            Frame::Error(b"x".to_vec()),
            Frame::File("a/b".into()),
            Frame::FileData(Vec::new()),
            Frame::Exit(125),
            Frame::Goodbye,
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut rest).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut rest).unwrap(), None);
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [
            &b"?\0\0\0\0"[..],
            b"o\xff\xff\xff\xff",
            b"o\x05\0\0\0ab",
            b"x\0\0\0\0",
            b"R\x01\0\0\0a",
        ] {
            Frame::read(&mut &*bytes).unwrap_err();
        }
    }
}
