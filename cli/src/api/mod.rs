//! `--api PATH`: control of a running VM from outside, HTTP and JSON on a unix socket.
//!
//! A thread of its own serves the clients, so that none of them keeps the VM or its signals waiting. The
//! socket is made before the VM is assembled, and removed when the VM has ended.
//!
//! ```text
//! client ──► socket ──► client.rs: bytes ──► http.rs: request ──► routes.rs: table ──► vm.rs, balloon.rs, …
//!                                                                                        └► VmHandle
//! ```

mod balloon;
mod client;
mod drives;
mod http;
mod rates;
mod routes;
mod vm;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use vmm::VmHandle;
use vmm::config::VmConfig;
use vmm::flag::Flag;
use vmm::socket::{SocketError, SocketFile, listen};

use self::client::{Client, Next};
use self::http::{Reply, Request};
use self::routes::{ROUTES, Target, serve};

/// Clients at one time. A further one takes the place of the one that has been quiet the longest.
const MAX_CLIENTS: usize = 16;

/// How long no further client is let in when that failed.
const REST: Duration = Duration::from_secs(1);

/// Why there can be no control socket.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The socket itself.
    #[error("API socket {0}")]
    Socket(#[from] SocketError),
    /// Its thread.
    #[error("the API cannot be started: {0}")]
    Start(#[source] io::Error),
}

/// A control socket that nobody serves yet: clients wait.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
    config: VmConfig,
}

impl Socket {
    /// Makes the socket at `path`, for a VM that will be made of `config`.
    pub fn open(path: &Path, config: &VmConfig) -> Result<Self, ApiError> {
        let (listener, file) = listen(path)?;
        Ok(Self {
            listener,
            file,
            config: config.clone(),
        })
    }

    /// Serves its clients, until what this gives is dropped.
    pub fn serve(self, handle: VmHandle) -> Result<Server, ApiError> {
        let Self {
            listener,
            file,
            config,
        } = self;
        let target = Target { handle, config };
        let answer = move |request: &Request| serve_logged(&target, request);
        start(listener, file, answer).map_err(ApiError::Start)
    }
}

fn start(
    listener: UnixListener,
    file: SocketFile,
    answer: impl FnMut(&Request) -> Reply + Send + 'static,
) -> io::Result<Server> {
    let stop = Arc::new(Flag::new()?);
    let mut clients = Clients {
        listener,
        stop: Arc::clone(&stop),
        clients: Vec::new(),
        closed_until: None,
    };
    let thread = Builder::new()
        .name("api".to_owned())
        .spawn(move || clients.run(answer))?;
    Ok(Server {
        stop,
        thread: Some(thread),
        _file: file,
    })
}

fn serve_logged(target: &Target, request: &Request) -> Reply {
    let reply = serve(ROUTES, target, request);
    log::info!(
        "API: {} {}: {}",
        request.method,
        request.path,
        reply.status()
    );
    reply
}

/// The thread that serves. Dropped, it ends, and the socket is removed.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Flag>,
    thread: Option<JoinHandle<()>>,
    _file: SocketFile,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported already.
            let _ = thread.join();
        }
    }
}

/// The clients there are, and who lets them in.
#[derive(Debug)]
struct Clients {
    listener: UnixListener,
    stop: Arc<Flag>,
    clients: Vec<Client>,
    closed_until: Option<Instant>,
}

impl Clients {
    /// Serves until it is told to stop. What was asked for before that has been answered then.
    fn run(&mut self, mut serve: impl FnMut(&Request) -> Reply) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => return log::error!("the API ends: {error}"),
            };
            if ready.stop {
                return;
            }
            let mut at = 0;
            // In the order of the polling; those that leave make room only afterwards.
            self.clients.retain_mut(|client| {
                let is_ready = ready.clients.get(at).copied().unwrap_or_default();
                at += 1;
                !is_ready || client.advance(&mut serve) == Next::Stay
            });
            self.dismiss_late();
            if ready.listener {
                self.accept();
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let now = Instant::now();
        let open = self.closed_until.is_none_or(|until| until <= now);
        let listening = if open {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut polled = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.listener, listening),
        ];
        let client = |client| PollFd::from_borrowed_fd(Client::as_fd(client), client.wanted());
        polled.extend(self.clients.iter().map(client));
        let deadlines = self.clients.iter().filter_map(Client::deadline);
        let next = deadlines.chain(self.closed_until.filter(|_| !open)).min();
        let left = next.map(|next| next.saturating_duration_since(now));
        // Rounded up, so that the deadline has passed afterwards.
        let left = left.map(|left| left + Duration::from_millis(1));
        let timeout = left.map(|left| Timespec::try_from(left).unwrap_or_default());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            stop: ready.next().unwrap_or_default(),
            listener: ready.next().unwrap_or_default(),
            clients: ready.collect(),
        })
    }

    fn dismiss_late(&mut self) {
        let now = Instant::now();
        let late = |client: &mut Client| client.deadline().is_some_and(|due| due <= now);
        self.clients.extract_if(.., late).for_each(Client::expire);
    }

    fn accept(&mut self) {
        match self
            .listener
            .accept()
            .and_then(|(stream, _)| Client::new(stream))
        {
            Ok(client) => {
                if self.clients.len() >= MAX_CLIENTS {
                    let quiet = (0..self.clients.len()).min_by_key(|at| self.clients[*at].rested());
                    quiet.map(|at| self.clients.swap_remove(at));
                }
                self.clients.push(client);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, say. Trying at once again would spin.
                log::warn!("the API lets no client in for a moment: {error}");
                self.closed_until = Some(Instant::now() + REST);
            }
        }
    }
}

/// What a poll has found ready.
#[derive(Debug)]
struct Ready {
    stop: bool,
    listener: bool,
    clients: Vec<bool>,
}

#[cfg(test)]
mod tests;
