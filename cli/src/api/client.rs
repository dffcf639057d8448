//! One client of the control socket: bytes in, requests out of them one at a time, replies back.
//!
//! Nothing here blocks. A client is not read while a reply of its waits to be taken, so it holds no more
//! memory than one request and one reply.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::http::{self, Read, Reply, Request};

/// How long a client may take for one request, and for taking its reply.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Most that one read takes.
const CHUNK: usize = 4096;

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When it came, began its request, or was given a whole reply.
    rested: Instant,
    /// Whether the reply under way is its last.
    leaves: bool,
    /// It has been nodded at for the request under way.
    nodded: bool,
}

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It does.
    Stay,
    /// It is over.
    Leave,
}

impl Client {
    /// A client that has come just now.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            rested: Instant::now(),
            leaves: false,
            nodded: false,
        })
    }

    /// What it waits for.
    pub fn wanted(&self) -> PollFlags {
        match self.output.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::OUT,
        }
    }

    /// When its time is up; a client that wants nothing has any amount of it.
    pub fn deadline(&self) -> Option<Instant> {
        let idle = self.input.is_empty() && self.output.is_empty();
        (!idle).then(|| self.rested + PATIENCE)
    }

    /// Since when it has been as it is.
    pub fn rested(&self) -> Instant {
        self.rested
    }

    /// Its time is up.
    pub fn expire(mut self) {
        if self.output.is_empty() {
            let late = Reply::fault(408, "the rest of the request did not come in time");
            self.output = late.to_bytes(false);
            let _ = self.send();
        }
    }

    /// Goes on with it after a poll that found it ready.
    pub fn advance(&mut self, serve: impl FnMut(&Request) -> Reply) -> Next {
        let result = match self.output.is_empty() {
            true => self.receive(),
            false => self.send(),
        };
        match result.and_then(|next| self.answer(next, serve)) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Next::Stay,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Next::Stay,
            Err(_) => Next::Leave,
        }
    }

    fn receive(&mut self) -> io::Result<Next> {
        if self.input.is_empty() {
            self.rested = Instant::now();
        }
        let mut chunk = [0; CHUNK];
        let count = self.stream.read(&mut chunk)?;
        self.input.extend(&chunk[..count]);
        // Whether it has only ended its own sending or is gone: there comes no further request.
        Ok(if count == 0 { Next::Leave } else { Next::Stay })
    }

    /// Answers the requests that are there, as long as it takes the replies.
    fn answer(&mut self, next: Next, mut serve: impl FnMut(&Request) -> Reply) -> io::Result<Next> {
        if next == Next::Leave {
            return Ok(next);
        }
        while self.output.is_empty() && !self.input.is_empty() {
            match http::read(&self.input) {
                Ok(Read::Whole(request, len)) => {
                    self.input.drain(..len);
                    self.leaves = !request.keep_alive;
                    self.nodded = false;
                    self.output = serve(&request).to_bytes(request.keep_alive);
                }
                Ok(Read::Part { waits }) if waits && !self.nodded => {
                    self.nodded = true;
                    self.output = http::CONTINUE.to_vec();
                }
                Ok(Read::Part { .. }) => return Ok(Next::Stay),
                Err(refusal) => {
                    self.leaves = true;
                    self.output = refusal.to_bytes(false);
                }
            }
            if self.send()? == Next::Leave {
                return Ok(Next::Leave);
            }
        }
        Ok(Next::Stay)
    }

    fn send(&mut self) -> io::Result<Next> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => drop(self.output.drain(..count)),
            }
        }
        if !self.nodded {
            self.rested = Instant::now();
        }
        Ok(if self.leaves { Next::Leave } else { Next::Stay })
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, Client) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        (theirs, Client::new(ours).unwrap())
    }

    #[test]
    fn only_a_client_that_is_at_it_has_a_deadline() {
        let (mut theirs, mut client) = pair();
        assert_eq!(client.deadline(), None);
        assert_eq!(client.wanted(), PollFlags::IN);
        let begun = Instant::now();
        theirs.write_all(b"GET / ").unwrap();
        assert_eq!(client.advance(|_| Reply::done()), Next::Stay);
        let deadline = client.deadline().unwrap();
        assert!(deadline >= begun + PATIENCE);
        // More crumbs win no time.
        theirs.write_all(b"HTTP/1.1\r\n").unwrap();
        assert_eq!(client.advance(|_| Reply::done()), Next::Stay);
        assert_eq!(client.deadline(), Some(deadline));
        theirs.write_all(b"\r\n").unwrap();
        assert_eq!(client.advance(|_| Reply::done()), Next::Stay);
        assert_eq!(client.deadline(), None);
    }

    #[test]
    fn who_comes_too_late_is_told_so() {
        let (mut theirs, mut client) = pair();
        theirs.write_all(b"GET / ").unwrap();
        assert_eq!(client.advance(|_| Reply::done()), Next::Stay);
        client.expire();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{text}"
        );
    }

    #[test]
    fn a_poll_that_was_wrong_does_no_harm() {
        let (_theirs, mut client) = pair();
        assert_eq!(client.advance(|_| unreachable!()), Next::Stay);
        assert_eq!(client.deadline(), None);
    }
}
