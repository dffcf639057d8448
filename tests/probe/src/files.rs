//! Works in a directory as a busy program would, and knows at every moment what must be in it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use probe::talk::random;

/// Runs a command line.
pub fn run(words: &[&str]) -> io::Result<()> {
    match words {
        ["exercise", seed, steps, directory] => {
            let number = |word: &str| word.parse().map_err(io::Error::other);
            exercise(Path::new(directory), number(seed)?, number(steps)?)
        }
        ["handles", directory] => super::handles::forge(Path::new(directory)),
        _ => Err(io::Error::other("there is no such work with files")),
    }
}

/// Files are no longer than this.
const LONGEST: usize = 40_000;
/// There are no more names than this.
const MOST: u64 = 60;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory,
    Link(PathBuf),
    /// One of the files, which may have several names.
    File(u64),
}

/// A file, whatever its names.
#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    mode: u32,
}

/// What must be there.
struct Model {
    root: PathBuf,
    random: u64,
    names: BTreeMap<PathBuf, Node>,
    files: BTreeMap<u64, File>,
    next: u64,
    /// How often each kind of work was done.
    done: BTreeMap<&'static str, u64>,
}

fn exercise(root: &Path, seed: u64, steps: u64) -> io::Result<()> {
    let mut model = Model {
        root: root.to_owned(),
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        names: BTreeMap::new(),
        files: BTreeMap::new(),
        next: 0,
        done: BTreeMap::new(),
    };
    for step in 0..steps {
        let told = |error| io::Error::other(format!("step {step}: {error}"));
        model.step().map_err(told)?;
    }
    model.compare()?;
    println!("done: {:?}", model.done);
    Ok(())
}

fn wrong<T>(what: &str, path: &Path) -> io::Result<T> {
    Err(io::Error::other(format!("{what}: {}", path.display())))
}

impl Model {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        (random(&mut self.random) >> 11) % end.max(1)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most as u64);
        let first = self.below(256);
        let each = |at: u64| (first + at * 7 + (at >> 8)).to_le_bytes()[0];
        (0..len).map(each).collect()
    }

    /// A name that is there, of the kind that is wanted.
    fn pick(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<PathBuf> {
        let names = self.names.iter().filter(|(_, node)| wanted(node));
        let names: Vec<PathBuf> = names.map(|(name, _)| name.clone()).collect();
        let at = self.below(names.len() as u64);
        names.into_iter().nth(usize::try_from(at).ok()?)
    }

    fn pick_file(&mut self) -> Option<(PathBuf, u64)> {
        let name = self.pick(|node| matches!(node, Node::File(_)))?;
        match self.names.get(&name) {
            Some(Node::File(file)) => Some((name.clone(), *file)),
            _ => None,
        }
    }

    /// A name that may be there, in a directory that is.
    fn name(&mut self) -> PathBuf {
        let parent = match self.below(3) {
            0 => PathBuf::new(),
            _ => self
                .pick(|node| *node == Node::Directory)
                .unwrap_or_default(),
        };
        let number = self.below(MOST);
        parent.join(format!("n{number}"))
    }

    fn at(&self, name: &Path) -> PathBuf {
        self.root.join(name)
    }

    fn note(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn step(&mut self) -> io::Result<()> {
        match self.below(14) {
            0 | 1 => self.create(),
            2 => self.write_somewhere(),
            3 => self.append(),
            4 => self.truncate(),
            5 | 6 => self.read(),
            7 => self.rename(),
            8 => self.link(),
            9 => self.symlink(),
            10 => self.remove(),
            11 => self.make_directory(),
            12 => self.change_mode(),
            _ => self.list(),
        }
    }

    fn create(&mut self) -> io::Result<()> {
        let name = self.name();
        let bytes = self.bytes(LONGEST);
        let file = match self.names.get(&name) {
            None => self.next,
            Some(Node::File(file)) => *file,
            Some(_) => return Ok(()),
        };
        fs::write(self.at(&name), &bytes)?;
        if file == self.next {
            self.next += 1;
            self.names.insert(name.clone(), Node::File(file));
            let mode = fs::metadata(self.at(&name))?.mode();
            self.files.insert(file, File { bytes, mode });
        } else if let Some(file) = self.files.get_mut(&file) {
            file.bytes = bytes;
        }
        self.note("create");
        Ok(())
    }

    fn write_somewhere(&mut self) -> io::Result<()> {
        let Some((name, file)) = self.pick_file() else {
            return Ok(());
        };
        let (bytes, offset) = (self.bytes(5000), self.below(LONGEST as u64));
        let open = OpenOptions::new().write(true).open(self.at(&name))?;
        open.write_all_at(&bytes, offset)?;
        if let (Some(file), false) = (self.files.get_mut(&file), bytes.is_empty()) {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            let end = offset + bytes.len();
            file.bytes.resize(file.bytes.len().max(end), 0);
            file.bytes[offset..end].copy_from_slice(&bytes);
        }
        self.note("write");
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let Some((name, file)) = self.pick_file() else {
            return Ok(());
        };
        let bytes = self.bytes(500);
        let mut open = OpenOptions::new().append(true).open(self.at(&name))?;
        open.write_all(&bytes)?;
        open.sync_all()?;
        if let Some(file) = self.files.get_mut(&file) {
            file.bytes.extend(bytes);
        }
        self.note("append");
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        let Some((name, file)) = self.pick_file() else {
            return Ok(());
        };
        let len = self.below(LONGEST as u64);
        let open = OpenOptions::new().write(true).open(self.at(&name))?;
        open.set_len(len)?;
        if let Some(file) = self.files.get_mut(&file) {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            file.bytes.resize(len, 0);
        }
        self.note("truncate");
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let Some((name, file)) = self.pick_file() else {
            return Ok(());
        };
        self.note("read");
        match self.files.get(&file) {
            Some(file) if fs::read(self.at(&name))? == file.bytes => Ok(()),
            _ => wrong("other bytes than were written", &name),
        }
    }

    fn rename(&mut self) -> io::Result<()> {
        let (Some(from), to) = (self.pick(|_| true), self.name()) else {
            return Ok(());
        };
        // Into itself, and over what is of another kind, is refused; that is not what this is about.
        let kind = |node: Option<&Node>| node.map(|node| *node == Node::Directory);
        let (old, new) = (self.names.get(&from).cloned(), self.names.get(&to).cloned());
        let is_directory = kind(old.as_ref()) == Some(true);
        if to.starts_with(&from)
            || is_directory && new.is_some()
            || kind(new.as_ref()) == Some(true)
        {
            return Ok(());
        }
        fs::rename(self.at(&from), self.at(&to))?;
        self.note("rename");
        if let (Some(Node::File(one)), Some(Node::File(other))) = (&old, &new)
            && one == other
        {
            // Two names of one file: rename(2) does nothing.
            return Ok(());
        }
        self.forget(&to);
        let moved: Vec<_> = self
            .names
            .keys()
            .filter(|name| name.starts_with(&from))
            .cloned()
            .collect();
        for name in moved {
            if let (Some(node), Ok(rest)) = (self.names.remove(&name), name.strip_prefix(&from)) {
                // Joining nothing would add a slash.
                let place = match rest.as_os_str().is_empty() {
                    true => to.clone(),
                    false => to.join(rest),
                };
                self.names.insert(place, node);
            }
        }
        Ok(())
    }

    fn link(&mut self) -> io::Result<()> {
        let (Some((from, file)), to) = (self.pick_file(), self.name()) else {
            return Ok(());
        };
        let linked = fs::hard_link(self.at(&from), self.at(&to));
        if self.names.contains_key(&to) {
            return match linked {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                _ => wrong("a link over what was there", &to),
            };
        }
        linked?;
        self.names.insert(to, Node::File(file));
        self.note("link");
        Ok(())
    }

    fn symlink(&mut self) -> io::Result<()> {
        let (name, target) = (self.name(), self.name());
        if self.names.contains_key(&name) {
            return Ok(());
        }
        symlink(&target, self.at(&name))?;
        if fs::read_link(self.at(&name))? != target {
            return wrong("a link that leads elsewhere", &name);
        }
        self.names.insert(name, Node::Link(target));
        self.note("symlink");
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        let Some(name) = self.pick(|_| true) else {
            return Ok(());
        };
        if self.names.get(&name) != Some(&Node::Directory) {
            fs::remove_file(self.at(&name))?;
            self.note("unlink");
            self.forget(&name);
            return Ok(());
        }
        let full = self.names.keys().any(|other| other.parent() == Some(&name));
        match fs::remove_dir(self.at(&name)) {
            Err(error) if full && error.kind() == ErrorKind::DirectoryNotEmpty => {}
            Ok(()) if !full => {
                self.names.remove(&name);
                self.note("rmdir");
            }
            Ok(()) => return wrong("a full directory was removed", &name),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A name is gone, and with the last name of a file the file.
    fn forget(&mut self, name: &Path) {
        if let Some(Node::File(file)) = self.names.remove(name) {
            let last = !self.names.values().any(|node| *node == Node::File(file));
            if last {
                self.files.remove(&file);
            }
        }
    }

    fn make_directory(&mut self) -> io::Result<()> {
        let name = self.name();
        let depth = name.components().count();
        if depth > 6 || self.names.contains_key(&name) {
            return Ok(());
        }
        fs::create_dir(self.at(&name))?;
        self.names.insert(name, Node::Directory);
        self.note("mkdir");
        Ok(())
    }

    fn change_mode(&mut self) -> io::Result<()> {
        let Some((name, file)) = self.pick_file() else {
            return Ok(());
        };
        let mode = 0o600 | u32::try_from(self.below(0o200)).map_err(io::Error::other)?;
        fs::set_permissions(self.at(&name), fs::Permissions::from_mode(mode))?;
        if let Some(file) = self.files.get_mut(&file) {
            file.mode = file.mode & !0o7777 | mode;
        }
        self.note("chmod");
        Ok(())
    }

    fn list(&mut self) -> io::Result<()> {
        let directory = self
            .pick(|node| *node == Node::Directory)
            .unwrap_or_default();
        self.note("list");
        self.compare_directory(&directory)
    }

    /// The directory has the names that it must have.
    fn compare_directory(&self, directory: &Path) -> io::Result<()> {
        let listed = fs::read_dir(self.at(directory))?;
        let listed: Result<Vec<_>, _> = listed
            .map(|entry| entry.map(|entry| directory.join(entry.file_name())))
            .collect();
        let mut listed = listed?;
        listed.sort();
        let known = self
            .names
            .keys()
            .filter(|name| name.parent() == Some(directory));
        match known.eq(&listed) {
            true => Ok(()),
            false => wrong("other names than were made", directory),
        }
    }

    /// Everything is as it must be.
    fn compare(&self) -> io::Result<()> {
        self.compare_directory(Path::new(""))?;
        for (name, node) in &self.names {
            let path = self.at(name);
            match node {
                Node::Directory => self.compare_directory(name)?,
                Node::Link(target) if fs::read_link(&path)? == *target => {}
                Node::Link(_) => return wrong("a link that leads elsewhere", name),
                Node::File(file) => {
                    let Some(file) = self.files.get(file) else {
                        return wrong("a name of no file", name);
                    };
                    if fs::read(&path)? != file.bytes {
                        return wrong("other bytes than were written", name);
                    }
                    if fs::metadata(&path)?.mode() != file.mode {
                        return wrong("another mode than was set", name);
                    }
                }
            }
        }
        Ok(())
    }
}
