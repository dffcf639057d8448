//! What a guest's init says to mvm: frames on a channel, through the mux that the host runs.

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use init_lib::frame::{Control, Decoder, Frame, Stream};
use init_lib::{Mux, MuxError};

use crate::target::Target;

/// The target. Its input is what the guest says.
#[derive(Debug)]
pub struct Command;

/// Steps after which an input that is not at its end would never be: each takes or gives something.
const MAX_STEPS: usize = 10_000;

/// Bytes in pieces, as they may come.
fn decode(data: &[u8], size: usize) -> Result<Vec<Vec<u8>>, ()> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in data.chunks(size) {
        decoder.room()[..piece.len()].copy_from_slice(piece);
        decoder.fill(piece.len());
        while let Some(frame) = decoder.next_frame().map_err(drop)? {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            frames.push(bytes);
        }
    }
    Ok(frames)
}

/// The host's end, with all of it said by a guest that then hangs up.
fn carry(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("no sockets");
    ours.set_nonblocking(true).expect("a socket");
    theirs.set_nonblocking(true).expect("a socket");
    let null = |write: bool| File::options().read(!write).write(write).open("/dev/null");
    let null = |write: bool| null(write).expect("there is no /dev/null").into();
    let mut mux = Mux::new(ours.into());
    mux.source(Stream::Stdin, null(false));
    mux.sink(Stream::Stdout, null(true));
    mux.sink(Stream::Stderr, null(true));
    // An input is shorter than what a socket holds.
    let _ = theirs.write_all(data);
    let _ = theirs.shutdown(Shutdown::Write);
    for _ in 0..MAX_STEPS {
        match mux.step(&[], None, &mut drop::<Control>) {
            Ok(_) => {}
            Err(MuxError::Malformed(what)) => return drop(what.to_string()),
            Err(MuxError::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it has no end");
}

impl Target for Command {
    fn name(&self) -> &str {
        "command"
    }

    fn about(&self) -> String {
        "what a guest's init says of a command and its streams".to_owned()
    }

    fn run(&self, data: &[u8]) {
        let whole = decode(data, 4096);
        for size in [1, 7] {
            assert_eq!(decode(data, size), whole, "in pieces of {size}");
        }
        carry(data);
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let controls = [
            Control::Hello { version: 1 },
            Control::Started { uptime: 1 << 40 },
            Control::Failed {
                status: 127,
                reason: b"no such file".to_vec(),
            },
            Control::Warning(b"careful".to_vec()),
            Control::Exited { status: 3 },
            Control::Killed { signal: 9 },
            Control::Bye,
        ];
        let mut frames = vec![
            Frame::Data(Stream::Stdout, b"out"),
            Frame::Data(Stream::Stderr, b"err"),
            Frame::Credit(Stream::Stdin, 1 << 16),
            Frame::Eof(Stream::Stdout),
            Frame::Closed(Stream::Stdin),
        ];
        frames.extend(controls.into_iter().map(Frame::Control));
        let mut all = Vec::new();
        let mut seeds: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| {
                let mut bytes = Vec::new();
                frame.encode(&mut bytes);
                all.extend_from_slice(&bytes);
                bytes
            })
            .collect();
        seeds.push(all);
        seeds
    }
}
