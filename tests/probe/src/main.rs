//! Runs in the guests of the end-to-end tests. Linked statically, so it runs in any.
//!
//! ```text
//! probe vsock call COUNT BYTES PORT     connect COUNT times to the host's port, exchange BYTES on each
//! probe vsock serve COUNT BYTES PORT    the same, the other way round
//! probe vsock both COUNT BYTES PORT     both at once
//! probe vsock ask BYTES PORT            send BYTES to the host and no more, then read its answer
//! probe vsock answer BYTES PORT         the same, the other way round
//! probe vsock stuff BYTES PORT          send BYTES to the host, however long that takes
//! probe vsock pour PORT                 send to the host without end
//! probe vsock refused PORT              connect where nobody listens
//! probe vsock cid                       say the guest's address
//! probe files exercise SEED STEPS DIR   work in DIR, which is empty, and compare it with what it must be
//! probe files handles DIR               open file handles of DIR's file system that were never given
//! probe keep write (DIR NUMBER)...    write records from NUMBER on, and say `kept INDEX NUMBER` of what is flushed
//! probe keep check (DIR NUMBER)...    look for what was kept up to NUMBER
//! probe disks write SEED STEPS DEV...  write to raw disks and read what was written
//! probe disks check SEED STEPS DEV...  look for what that left
//! probe echo PORT                       say over TCP and UDP what is heard at the port
//! ```

mod disks;
mod echo;
mod files;
mod handles;
mod keep;
mod vsock;

use std::env;
use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["vsock", ref words @ ..] => vsock::run(words),
        ["files", ref words @ ..] => files::run(words),
        ["keep", ref words @ ..] => keep::run(words),
        ["disks", ref words @ ..] => disks::run(words),
        ["echo", port] => port.parse().map_err(io::Error::other).and_then(echo::run),
        _ => Err(io::Error::other("there is no such probe")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("probe {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}
