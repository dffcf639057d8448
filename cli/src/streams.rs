//! The streams of a command in the guest: this process's own, and at a terminal without mvm's keys.

use std::io::{self, PipeWriter, Read, Write};
use std::thread;

use vmm::CommandIo;
use vmm::console::InputFilter;

/// The most that somebody types between two reads.
const CHUNK: usize = 4096;

/// This process's streams. With `keys`, standard input passes through them on its way.
pub fn inherit(keys: Option<InputFilter>) -> io::Result<CommandIo> {
    let mut streams = CommandIo::inherit()?;
    if let Some(keys) = keys {
        let (reader, writer) = io::pipe()?;
        streams.stdin = reader.into();
        // Left behind in its read when the command ends; the process ends right after.
        thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || pass_on(keys, writer))?;
    }
    Ok(streams)
}

fn pass_on(mut keys: InputFilter, mut command: PipeWriter) {
    let mut typed = [0; CHUNK];
    let mut passed = Vec::new();
    loop {
        match io::stdin().lock().read(&mut typed) {
            Ok(0) => return,
            Ok(count) => keys(&typed[..count], &mut passed),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A terminal that has gone away.
            Err(_) => return,
        }
        if command.write_all(&passed).is_err() {
            return;
        }
        passed.clear();
    }
}
