//! Writes to disks past the page cache, sectors at random and several requests at a time, and knows at every moment
//! what must be in each.
//!
//! What a disk is given follows from a seed, so that a later boot can tell what must be on it without having been told.

use std::fs::{File, OpenOptions, read_to_string};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use probe::talk::random;

const SECTOR: usize = 512;
/// Sectors of the longest request: 128 KiB.
const LONGEST: usize = 256;

/// An odd number that spreads bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Runs a command line.
pub fn run(words: &[&str]) -> io::Result<()> {
    let [what @ ("write" | "check"), seed, steps, devices @ ..] = words else {
        return Err(io::Error::other("there is no such work with disks"));
    };
    let number = |word: &str| word.parse::<u64>().map_err(io::Error::other);
    let (seed, steps) = (number(seed)?, number(steps)?);
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (index, device) in (0..).zip(devices) {
            // From one request at a time to eight.
            let parts = 1 << (index % 4);
            for part in 0..parts {
                let mut part = Part {
                    seed: seed + 100 * index + part,
                    ..Part::open(device, *what == "write", part, parts)?
                };
                running.push(scope.spawn(move || {
                    let worked = part.work(steps);
                    worked.map_err(|error| io::Error::other(format!("{device}: {error}")))
                }));
            }
        }
        running.into_iter().try_for_each(|thread| {
            let joined = thread.join();
            joined.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        })
    })
}

/// A part of a disk, which one thread has for itself.
struct Part {
    file: File,
    writes: bool,
    /// No other part has it.
    seed: u64,
    /// Where it begins, in sectors.
    start: u64,
    /// When each of its sectors was written last: the number of the step, or 0.
    written: Vec<u64>,
    /// Room for a request, and to align it in.
    room: Vec<u8>,
}

enum Kind {
    Write,
    Read,
    Flush,
}

/// Where numbers that look random come from.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // Less than `end`, so it fits.
        usize::try_from(random(&mut self.0) % end as u64).unwrap_or(0)
    }

    /// What to do next to which of so many sectors: most requests are short, some as long as can be.
    fn step(&mut self, len: usize) -> (Kind, Range<usize>) {
        let longest = [1, 8, 8, 64, LONGEST][self.below(5)];
        let count = (self.below(longest) + 1).min(len);
        let first = self.below(len - count + 1);
        let kind = match self.below(16) {
            0 => Kind::Flush,
            1..10 => Kind::Write,
            _ => Kind::Read,
        };
        (kind, first..first + count)
    }
}

/// What the sector `number` of a part is given in step `step`; what was never written is zeroes.
fn content(seed: u64, number: u64, step: u64) -> impl Iterator<Item = u8> {
    let first = (seed << 48 ^ step << 32 ^ number).wrapping_mul(SPREAD);
    let words = (0..64u64).map(move |word| match step {
        0 => 0,
        _ => first.wrapping_add(word),
    });
    words.flat_map(u64::to_le_bytes)
}

impl Part {
    fn open(device: &str, writes: bool, number: u64, parts: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(writes)
            .custom_flags(libc::O_DIRECT)
            .open(device)?;
        let name = device.rsplit('/').next().unwrap_or(device);
        let size = read_to_string(format!("/sys/class/block/{name}/size"))?;
        let len = size.trim().parse::<u64>().map_err(io::Error::other)? / parts;
        Ok(Self {
            file,
            writes,
            seed: 0,
            start: number * len,
            written: vec![0; usize::try_from(len).map_err(io::Error::other)?],
            room: vec![0; (LONGEST + 17) * SECTOR],
        })
    }

    /// Does every step, or only takes down what came of them, and looks at all sectors in the end.
    fn work(&mut self, steps: u64) -> io::Result<()> {
        let mut random = Random((self.seed + 1).wrapping_mul(SPREAD) | 1);
        for step in 1..=steps {
            let (kind, sectors) = random.step(self.written.len());
            // Memory is aligned as a disk demands it at least, and no more.
            let offset = 1 + random.below(8);
            match kind {
                Kind::Write => {
                    self.written[sectors.clone()].fill(step);
                    if self.writes {
                        self.write(sectors, offset)?;
                    }
                }
                Kind::Read if self.writes => self.check(sectors, offset)?,
                Kind::Flush if self.writes => self.file.sync_data()?,
                Kind::Read | Kind::Flush => {}
            }
        }
        if self.writes {
            self.file.sync_data()?;
        }
        let len = self.written.len();
        (0..len)
            .step_by(LONGEST)
            .try_for_each(|first| self.check(first..(first + LONGEST).min(len), 8))
    }

    /// Room for so many sectors, so many of them behind a page's beginning.
    fn aligned(&self, sectors: usize, offset: usize) -> Range<usize> {
        let page = self.room.as_ptr().addr().next_multiple_of(4096) - self.room.as_ptr().addr();
        let start = page + offset * SECTOR;
        start..start + sectors * SECTOR
    }

    /// The sectors as they must be.
    fn expected(&self, sectors: &Range<usize>) -> Vec<u8> {
        let sectors = sectors.clone();
        let bytes = sectors.flat_map(|at| content(self.seed, at as u64, self.written[at]));
        bytes.collect()
    }

    fn place(&self, sectors: &Range<usize>) -> u64 {
        (self.start + sectors.start as u64) * SECTOR as u64
    }

    fn write(&mut self, sectors: Range<usize>, offset: usize) -> io::Result<()> {
        let (bytes, place) = (self.expected(&sectors), self.place(&sectors));
        let room = self.aligned(sectors.len(), offset);
        self.room[room.clone()].copy_from_slice(&bytes);
        self.file.write_all_at(&self.room[room], place)
    }

    fn check(&mut self, sectors: Range<usize>, offset: usize) -> io::Result<()> {
        let (expected, place) = (self.expected(&sectors), self.place(&sectors));
        let room = self.aligned(sectors.len(), offset);
        self.file
            .read_exact_at(&mut self.room[room.clone()], place)?;
        let both = self.room[room].chunks(SECTOR).zip(expected.chunks(SECTOR));
        match both.into_iter().position(|(got, want)| got != want) {
            None => Ok(()),
            Some(at) => Err(io::Error::other(format!(
                "sector {} is not what was written to it",
                place / SECTOR as u64 + at as u64
            ))),
        }
    }
}
