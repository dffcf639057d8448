//! Types into the console what the script says, at the guest's pace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// The writing end of the console's input.
#[derive(Debug)]
pub struct Typist {
    pipe: OwnedFd,
    /// What the pipe has not taken yet.
    pending: Vec<u8>,
}

impl Typist {
    /// One with nothing to type, and the console's end.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        // The console polls before it reads.
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let typist = Self {
            pipe: write,
            pending: Vec::new(),
        };
        Ok((typist, read))
    }

    /// Types this after what there is already, as far as that is possible now.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
        while !self.pending.is_empty() {
            match rustix::io::write(&self.pipe, &self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The VM has ended, and nobody is there to read it.
                Err(_) => self.pending.clear(),
            }
        }
    }

    /// Where there is more to type, this becomes writable when it can go on.
    pub fn waits(&self) -> Option<BorrowedFd<'_>> {
        (!self.pending.is_empty()).then(|| self.pipe.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_typed_as_the_pipe_takes_it() {
        let (mut typist, console) = Typist::new().unwrap();
        let text: Vec<u8> = (0..=250).cycle().take(200_000).collect();
        typist.type_in(&text);
        assert!(typist.waits().is_some());
        let (mut got, mut chunk) = (Vec::<u8>::new(), [0; 4096]);
        while got.len() < text.len() {
            let count = rustix::io::read(&console, &mut chunk).unwrap();
            got.extend(&chunk[..count]);
            typist.type_in(&[]);
        }
        assert_eq!(got, text);
        assert!(typist.waits().is_none());
        drop(console);
        typist.type_in(b"nobody reads this");
        assert!(typist.waits().is_none());
    }
}
