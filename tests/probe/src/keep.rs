//! Writes records that must outlive whatever happens once they are flushed, and looks for them afterwards.
//!
//! In each directory the records are numbered from 1. What is in one follows from its number and its directory, so that
//! nothing has to be remembered. Three kinds take turns: a new file, whose directory is flushed too; a place in a file
//! that is written over again and again; and a file that replaces another of its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use probe::talk::random;

/// Records of a kind that are there at a time.
const ROOM: u64 = 64;
/// Of these, how many are looked for: reports of the later ones may have been lost.
const SOUGHT: u64 = 24;
/// Bytes that a record has at most, and that a place has.
const LONGEST: u64 = 16 << 10;

/// Runs a command line.
pub fn run(words: &[&str]) -> io::Result<()> {
    let pairs = || {
        words[1..].chunks(2).map(|pair| match pair {
            [directory, last] => Ok((
                PathBuf::from(directory),
                last.parse::<u64>().map_err(io::Error::other)?,
            )),
            _ => Err(io::Error::other("a directory without a number")),
        })
    };
    match words {
        ["write", ..] => {
            let pairs = pairs().collect::<io::Result<Vec<_>>>()?;
            write_all(&pairs)
        }
        ["check", ..] => pairs().try_for_each(|pair| {
            let (directory, last) = pair?;
            check(&directory, last)
        }),
        _ => Err(io::Error::other("there is no such work with records")),
    }
}

/// Bytes that nobody would write by chance: random ones from the record's number and its directory's name.
fn record(directory: &Path, number: u64) -> Vec<u8> {
    let name = directory.as_os_str().as_encoded_bytes();
    let mut state = name.iter().fold(number + 1, |seed, byte| {
        (seed ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }) | 1;
    let mut next = || random(&mut state);
    let words = next() % (LONGEST / 8) + 1;
    [number, words]
        .into_iter()
        .chain((2..words).map(|_| next()))
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// Writes to every directory at once, without end.
fn write_all(pairs: &[(PathBuf, u64)]) -> io::Result<()> {
    thread::scope(|scope| {
        let writers: Vec<_> = (0..)
            .zip(pairs)
            .map(|(index, (directory, last))| scope.spawn(move || write(index, directory, *last)))
            .collect();
        writers.into_iter().try_for_each(|writer| {
            let joined = writer.join();
            joined.unwrap_or_else(|_| Err(io::Error::other("a writer panicked")))
        })
    })
}

/// The file that the places are in.
fn places(directory: &Path) -> PathBuf {
    directory.join("places")
}

/// Where the record `number` is, if it is one of these.
fn place(number: u64) -> u64 {
    number / 3 % ROOM * LONGEST
}

fn write(index: usize, directory: &Path, last: u64) -> io::Result<()> {
    let open = |path: &Path| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).open(path)
    };
    let named = File::open(directory)?;
    let places = open(&places(directory))?;
    for number in last + 1.. {
        let bytes = record(directory, number);
        match number % 3 {
            0 => {
                let mut file = File::create(directory.join(format!("new-{number}")))?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                named.sync_all()?;
                if let Some(old) = number.checked_sub(3 * ROOM) {
                    // The first run begins with none.
                    let _ = fs::remove_file(directory.join(format!("new-{old}")));
                }
            }
            1 => {
                places.write_all_at(&bytes, place(number))?;
                places.sync_data()?;
            }
            _ => {
                let unfinished = directory.join("unfinished");
                let mut file = File::create(&unfinished)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&unfinished, directory.join("newest"))?;
                named.sync_all()?;
            }
        }
        let mut out = io::stdout().lock();
        out.write_all(format!("kept {index} {number}\n").as_bytes())?;
        out.flush()?;
    }
    Ok(())
}

/// Fails unless everything is there up to the record `last`, as far as it was not to be written over.
fn check(directory: &Path, last: u64) -> io::Result<()> {
    let lost = |what: &str, number: u64| {
        Err(io::Error::other(format!(
            "{}: {what} {number} of {last} is not what was kept",
            directory.display()
        )))
    };
    for number in last.saturating_sub(3 * SOUGHT).max(1)..=last {
        let want = record(directory, number);
        match number % 3 {
            0 => {
                if fs::read(directory.join(format!("new-{number}"))).ok() != Some(want) {
                    return lost("file", number);
                }
            }
            1 => {
                let mut got = vec![0; want.len()];
                File::open(places(directory))?.read_exact_at(&mut got, place(number))?;
                if got != want {
                    return lost("place", number);
                }
            }
            _ => {
                // It may have been replaced since, by a whole one.
                let got = fs::read(directory.join("newest"))?;
                let head = got
                    .first_chunk()
                    .map_or(0, |bytes| u64::from_le_bytes(*bytes));
                if head < number || got != record(directory, head) {
                    return lost("replacement", number);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_torn_or_old_is_noticed() {
        let directory = std::env::temp_dir().join(format!("probe-keep-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let old = record(&directory, 5);
        for number in 1..=8 {
            let bytes = record(&directory, number);
            match number % 3 {
                0 => fs::write(directory.join(format!("new-{number}")), bytes).unwrap(),
                1 => {
                    let mut options = OpenOptions::new();
                    let file = options.write(true).create(true).truncate(false);
                    let file = file.open(places(&directory)).unwrap();
                    file.write_all_at(&bytes, place(number)).unwrap();
                }
                _ => fs::write(directory.join("newest"), bytes).unwrap(),
            }
        }
        check(&directory, 8).unwrap();
        check(&directory, 6).unwrap();
        check(&directory, 9).unwrap_err();
        let newest = fs::read(directory.join("newest")).unwrap();
        fs::write(directory.join("newest"), &old).unwrap();
        check(&directory, 8).unwrap_err();
        check(&directory, 7).unwrap();
        fs::write(directory.join("newest"), &newest[..newest.len() - 1]).unwrap();
        check(&directory, 8).unwrap_err();
        fs::write(directory.join("newest"), newest).unwrap();
        let file = OpenOptions::new().write(true).open(places(&directory));
        file.unwrap().write_all_at(&[0; 8], place(7)).unwrap();
        check(&directory, 8).unwrap_err();
        fs::remove_dir_all(&directory).unwrap();
    }
}
