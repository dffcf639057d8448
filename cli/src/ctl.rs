//! `mvm ctl SOCKET …`: a client of a running VM's `--api` socket, so that nobody needs another.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use thiserror::Error;
use vmm::config::{MemorySize, RateError, RateLimit};

/// `mvm ctl`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = false)]
pub struct CtlArgs {
    /// The VM's --api socket
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// What to do
    #[command(subcommand)]
    action: Action,
}

/// What can be done to a running VM.
#[derive(Debug, Subcommand)]
enum Action {
    /// Show the VM's state and the size of its balloon
    Status,
    /// Show the balloon's size, or set it: the guest gives up that much memory
    Balloon {
        /// The new size, such as 256M; 0 gives everything back
        #[arg(value_name = "SIZE")]
        size: Option<MemorySize>,
    },
    /// Show what the guest tells of its memory, in bytes
    Statistics,
    /// Show what limits a device, or limit it anew
    Limit {
        /// disk0 (the root file system where there is one), disk1, …, net0, …, or rng
        #[arg(value_name = "DEVICE")]
        device: Device,
        /// Such as bps=100M,iops=1000,burst=10M; none lifts the limit
        #[arg(value_name = "none|bps=SIZE,iops=N,burst=SIZE", value_parser = limit)]
        limit: Option<RateLimit>,
    },
    /// Show a disk, or do something to it
    Disk {
        /// disk0 (the root file system where there is one), disk1, …
        #[arg(value_name = "DISK", value_parser = disk)]
        disk: Device,
        /// What to do
        #[command(subcommand)]
        action: Option<DiskAction>,
    },
    /// Stop the guest where it is, until it is resumed
    Pause,
    /// Let a paused guest go on
    Resume,
    /// Ask the guest to shut down
    PowerButton,
    /// End the VM now
    Stop,
    /// Send a request as it is, and show the answer's JSON
    Request {
        /// GET, PUT or PATCH
        #[arg(value_name = "METHOD")]
        method: String,
        /// A resource, such as /balloon
        #[arg(value_name = "PATH")]
        path: String,
        /// The request's JSON
        #[arg(value_name = "JSON")]
        body: Option<String>,
    },
}

/// What can be done to a disk of a running VM.
#[derive(Debug, Subcommand)]
enum DiskAction {
    /// Show what it has done: requests, bytes, errors, latencies
    Statistics,
    /// Give it another size; the guest is told. What a smaller one had beyond its end is lost
    Resize {
        /// Such as 20G; without it, the size that its image has been given
        #[arg(value_name = "SIZE")]
        size: Option<MemorySize>,
    },
    /// Put another image in the place of the one that it stands on
    Swap {
        /// The image
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Have the guest's requests wait
    Pause,
    /// Have them go on, those first that the host has failed
    Resume,
    /// Put on stable storage what the guest was told is written
    Flush,
}

/// A device, by its path in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device(String);

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kinds = [("disk", "/drives/"), ("net", "/network-interfaces/")];
        let path = kinds.iter().find_map(|(kind, path)| {
            let number: u16 = text.strip_prefix(kind)?.parse().ok()?;
            Some(format!("{path}{number}"))
        });
        match path {
            Some(path) => Ok(Self(path)),
            None if text == "rng" => Ok(Self("/entropy".to_owned())),
            None => Err("it is none of disk0, disk1, …, net0, net1, … and rng".to_owned()),
        }
    }
}

fn disk(text: &str) -> Result<Device, String> {
    match text.parse() {
        Ok(device @ Device(_)) if text.starts_with("disk") => Ok(device),
        _ => Err("it is none of disk0, disk1, …".to_owned()),
    }
}

fn limit(text: &str) -> Result<RateLimit, RateError> {
    match text {
        "none" => Ok(RateLimit::default()),
        text => text.parse(),
    }
}

/// Why a VM could not be controlled.
#[derive(Debug, Error)]
pub enum CtlError {
    /// There is no socket.
    #[error("there is no socket {0}; a VM makes one where it is started with --api {0}")]
    NoSocket(PathBuf),
    /// There is one that nobody listens to.
    #[error("no VM listens on {0}; it was left behind and may be removed")]
    NoListener(PathBuf),
    /// The connection, or the talk over it.
    #[error("the VM at {path} cannot be reached: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What came back is not an answer.
    #[error("what listens on {0} is not mvm's API")]
    Nonsense(PathBuf),
    /// The VM has refused.
    #[error("the VM says: {message} (status {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// The working directory is gone.
    #[error("{path} cannot be named from the root: {source}")]
    Path {
        /// What was named.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The API counts in MiB.
    #[error("a balloon's size is in whole MiB; {0} is not")]
    NotMib(MemorySize),
    /// The answer could not be shown.
    #[error("standard output: {0}")]
    Output(#[source] io::Error),
}

/// How long the VM may take for its part of the talk.
const PATIENCE: Duration = Duration::from_secs(15);

/// Most that is read of an answer.
const MAX_ANSWER: u64 = 1 << 20;

/// Does it, and shows the answer.
pub fn run(args: CtlArgs) -> Result<u8, CtlError> {
    let vm = Vm(args.socket);
    let text = match args.action {
        Action::Status => {
            let info = vm.get("/")?;
            let mut text = lines(&info, &[("state", "state"), ("id", "id")]);
            if !info["trouble"].is_null() {
                text.push_str(&lines(&info, &[("trouble", "trouble")]));
            }
            text.push_str(&match vm.get("/balloon") {
                Ok(balloon) => balloon_lines(&balloon),
                Err(CtlError::Refused { status: 404, .. }) => "balloon: none\n".to_owned(),
                Err(error) => return Err(error),
            });
            text
        }
        Action::Balloon { size: None } => balloon_lines(&vm.get("/balloon")?),
        Action::Balloon { size: Some(size) } => {
            let bytes = size.as_bytes();
            if !bytes.is_multiple_of(1 << 20) {
                return Err(CtlError::NotMib(size));
            }
            let body = json!({ "amount_mib": bytes >> 20 }).to_string();
            vm.request("PATCH", "/balloon", &body)?;
            String::new()
        }
        Action::Statistics => all_lines(&vm.get("/balloon/statistics")?),
        Action::Limit {
            device: Device(path),
            limit: None,
        } => {
            let mut answer = vm.get(&path)?;
            let limit: RateLimit =
                serde_json::from_value(answer["rate_limiter"].take()).map_err(|_| vm.nonsense())?;
            match limit.is_none() {
                true => "none\n".to_owned(),
                false => format!("{limit}\n"),
            }
        }
        Action::Limit {
            device: Device(path),
            limit: Some(limit),
        } => {
            let body = json!({ "rate_limiter": limit }).to_string();
            vm.request("PATCH", &path, &body)?;
            String::new()
        }
        Action::Disk {
            disk: Device(path),
            action,
        } => vm.disk(&path, action)?,
        Action::Pause => vm.set_state("Paused")?,
        Action::Resume => vm.set_state("Resumed")?,
        Action::PowerButton => vm.act("SendCtrlAltDel")?,
        Action::Stop => vm.act("InstanceHalt")?,
        Action::Request { method, path, body } => {
            let answer = vm.request(&method, &path, &body.unwrap_or_default())?;
            answer.map_or_else(String::new, |answer| format!("{answer}\n"))
        }
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(CtlError::Output)?;
    Ok(0)
}

fn balloon_lines(balloon: &Value) -> String {
    let mib = |key: &str| MemorySize::bytes(balloon[key].as_u64().unwrap_or(0) << 20);
    format!(
        "balloon: {} of {} asked for\n",
        mib("actual_mib"),
        mib("amount_mib")
    )
}

fn disk_lines(disk: &Value) -> String {
    let size = MemorySize::bytes(disk["size_bytes"].as_u64().unwrap_or(0));
    let mut text = lines(disk, &[("id", "drive_id"), ("state", "state")]);
    if !disk["trouble"].is_null() {
        text.push_str(&lines(disk, &[("trouble", "trouble")]));
    }
    text.push_str(&format!("size: {size}\n"));
    text.push_str(&lines(disk, &[("read-only", "is_read_only")]));
    text
}

/// A line for each kind of requests that there were.
fn statistics_lines(all: &Value) -> String {
    let line = |(name, of): (&String, &Value)| {
        let number = |key: &str| of[key].as_u64().unwrap_or(0);
        let below = |key: &str| {
            let limit = of[key].as_u64();
            limit.map_or_else(|| "more".to_owned(), |limit| format!("below {limit} us"))
        };
        (number("requests") > 0).then(|| {
            format!(
                "{name}: requests {}, bytes {}, errors {}; half took {}, 99 % {}\n",
                number("requests"),
                number("bytes"),
                number("errors"),
                below("p50_below_us"),
                below("p99_below_us"),
            )
        })
    };
    let all = all.as_object().into_iter().flatten();
    all.filter_map(line).collect()
}

/// Some fields of an object, `name: value` each.
fn lines(object: &Value, fields: &[(&str, &str)]) -> String {
    fields
        .iter()
        .map(|(name, key)| format!("{name}: {}\n", plain(&object[key])))
        .collect()
}

/// All fields of an object.
fn all_lines(object: &Value) -> String {
    object
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}: {}\n", plain(value)))
        .collect()
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// A VM, by its socket.
struct Vm(PathBuf);

impl Vm {
    fn get(&self, path: &str) -> Result<Value, CtlError> {
        self.request("GET", path, "")?
            .ok_or_else(|| self.nonsense())
    }

    fn act(&self, action: &str) -> Result<String, CtlError> {
        let body = json!({ "action_type": action }).to_string();
        self.request("PUT", "/actions", &body)?;
        Ok(String::new())
    }

    fn disk(&self, path: &str, action: Option<DiskAction>) -> Result<String, CtlError> {
        let change = match action {
            None => return Ok(disk_lines(&self.get(path)?)),
            Some(DiskAction::Statistics) => {
                let all = self.get(&format!("{path}/statistics"))?;
                return Ok(statistics_lines(&all));
            }
            Some(DiskAction::Flush) => {
                self.request("PUT", &format!("{path}/flush"), "")?;
                return Ok(String::new());
            }
            Some(DiskAction::Resize { size: Some(size) }) => json!({ "size": size }),
            Some(DiskAction::Resize { size: None }) => json!({ "size": "image" }),
            // The VM's working directory is another.
            Some(DiskAction::Swap { path }) => match std::path::absolute(&path) {
                Ok(absolute) => json!({ "path_on_host": absolute }),
                Err(source) => return Err(CtlError::Path { path, source }),
            },
            Some(DiskAction::Pause) => json!({ "state": "Paused" }),
            Some(DiskAction::Resume) => json!({ "state": "Resumed" }),
        };
        self.request("PATCH", path, &change.to_string())?;
        Ok(String::new())
    }

    fn set_state(&self, state: &str) -> Result<String, CtlError> {
        let body = json!({ "state": state }).to_string();
        self.request("PATCH", "/vm", &body)?;
        Ok(String::new())
    }

    /// Sends one request; the answer's JSON, if it has any.
    fn request(&self, method: &str, path: &str, body: &str) -> Result<Option<Value>, CtlError> {
        let answer =
            talk(&self.0, method, path, body).map_err(|source| self.unreachable(source))?;
        let (status, body) = understand(&answer).ok_or_else(|| self.nonsense())?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let message = body
            .as_ref()
            .and_then(|body| body["fault_message"].as_str())
            .unwrap_or("no reason given");
        Err(CtlError::Refused {
            status,
            message: message.to_owned(),
        })
    }

    fn nonsense(&self) -> CtlError {
        CtlError::Nonsense(self.0.clone())
    }

    fn unreachable(&self, source: io::Error) -> CtlError {
        let path = self.0.clone();
        match source.kind() {
            io::ErrorKind::NotFound => CtlError::NoSocket(path),
            io::ErrorKind::ConnectionRefused => CtlError::NoListener(path),
            _ => CtlError::Io { path, source },
        }
    }
}

/// One request and all that comes back.
fn talk(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // A refusal may come before the whole of a request is taken.
    let sent = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let read = stream.take(MAX_ANSWER).read_to_end(&mut answer);
    match (sent, read) {
        (Err(error), _) if answer.is_empty() => Err(error),
        (_, Err(error)) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

/// The status and the JSON of an answer.
fn understand(answer: &[u8]) -> Option<(u16, Option<Value>)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(len) = head.parse(answer).ok()? else {
        return None;
    };
    let body = answer.get(len..)?;
    let body = match body.is_empty() {
        true => None,
        false => Some(serde_json::from_slice(body).ok()?),
    };
    Some((head.code?, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood_and_nonsense_is_not() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\":1}\n";
        assert_eq!(understand(answer), Some((200, Some(json!({ "a": 1 })))));
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(understand(answer), Some((204, None)));
        for nonsense in [
            "",
            "SSH-2.0-x\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n\r\n{",
        ] {
            assert_eq!(understand(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    #[test]
    fn devices_are_found_by_name() {
        for (name, path) in [
            ("disk0", "/drives/0"),
            ("disk12", "/drives/12"),
            ("net1", "/network-interfaces/1"),
            ("rng", "/entropy"),
        ] {
            assert_eq!(name.parse(), Ok(Device(path.to_owned())));
        }
        for name in [
            "",
            "disk",
            "diskette",
            "disk-1",
            "net99999",
            "rng0",
            "vda",
            "/drives/0",
        ] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
        assert_eq!(limit("none"), Ok(RateLimit::default()));
        assert!(limit("").is_err());
    }

    #[test]
    fn sizes_are_shown_as_they_are_written() {
        let balloon = json!({ "amount_mib": 256, "actual_mib": 100 });
        assert_eq!(balloon_lines(&balloon), "balloon: 100M of 256M asked for\n");
    }
}
