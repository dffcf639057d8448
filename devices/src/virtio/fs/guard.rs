//! What a guest may do to a shared directory, on top of what the server's pass-through does.
//!
//! The pass-through trusts its client more than a guest is to be trusted: it passes the guest's open(2)
//! flags on, looks up `..`, and holds as many descriptors as it is asked for. The guard stands before it.
//! It also decides who owns what: a process that is not root has one user, so its guests' files are all
//! that user's.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, OpenOptions, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

use super::ShareOptions;
use super::limit::Limit;

/// How long a guest may believe what it knows of a file: changes on the host are seen after that.
const CACHED: Duration = Duration::from_secs(1);

/// What is used of the FUSE protocol. Not among it are DAX and passthrough of descriptors, which there is
/// no hardware for; locks, which are the guest's own so that no request waits; and write-back, which is
/// for directories that nobody else writes.
const OFFERED: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::MAX_PAGES)
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::DO_READDIRPLUS)
    .union(FsOptions::READDIRPLUS_AUTO);

/// The open(2) flags that a guest may have. Not among them are those that change what is opened:
/// O_PATH, O_TMPFILE, O_CREAT; and O_DIRECT, as the guest's buffers need not be aligned for the host.
const FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_EXCL;

type Inode = u64;
type Handle = u64;

/// A directory that a guest has access to.
pub(super) struct Guard {
    inner: PassthroughFs,
    limit: Limit,
    read_only: bool,
    /// Files belong to whom the guest says.
    any_owner: bool,
    /// Keeps the number valid by which the pass-through finds the directory.
    _root: Arc<OwnedFd>,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn flags(asked: u32) -> u32 {
    asked & FLAGS.cast_unsigned()
}

impl Guard {
    /// Guards the directory that `root` is.
    pub fn new(root: Arc<OwnedFd>, options: ShareOptions) -> io::Result<Self> {
        let inner = PassthroughFs::new(Config {
            // A link would not be followed; its own directory is found in any case.
            root_dir: format!("/proc/self/fd/{}/.", root.as_raw_fd()),
            attr_timeout: CACHED,
            entry_timeout: CACHED,
            cache_policy: CachePolicy::Auto,
            // Otherwise the number of each file is remembered for good.
            use_host_ino: true,
            ..Config::default()
        })?;
        Ok(Self {
            inner,
            limit: Limit::new(options.max_files),
            read_only: options.read_only,
            any_owner: rustix::process::geteuid().is_root(),
            _root: root,
        })
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(errno(libc::EROFS));
        }
        Ok(())
    }

    /// The guest is told of `entry`, unless it knows of too many.
    fn tell(&self, context: &Context, entry: Entry) -> io::Result<Entry> {
        match self.limit.tell(entry.inode, entry.attr.st_ino) {
            Ok(()) => Ok(entry),
            Err(error) => {
                self.inner.forget(context, entry.inode, 1);
                Err(error)
            }
        }
    }

    /// Opens something, unless too many are open.
    fn opened<T>(&self, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.limit.take()?;
        open().inspect_err(|_| self.limit.give_back())
    }

    fn closed(&self, released: io::Result<()>) -> io::Result<()> {
        released.inspect(|()| self.limit.give_back())
    }

    /// What the guest is told of one entry of a directory. It is not told more than the name where it
    /// knows of too many files.
    fn entry(&self, context: &Context, parent: Inode, name: &[u8]) -> io::Result<Option<Entry>> {
        let name = CString::new(name)?;
        match self.lookup(context, parent, &name) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.raw_os_error() == Some(libc::ENFILE) => Ok(Some(Entry::default())),
            // It is gone, or may not be looked at.
            Err(_) => Ok(None),
        }
    }
}

impl FileSystem for Guard {
    type Inode = Inode;
    type Handle = Handle;

    fn id_remap(&self, context: &mut Context) -> io::Result<()> {
        if !self.any_owner {
            // To the pass-through, root is who it runs as.
            context.uid = 0;
            context.gid = 0;
        }
        Ok(())
    }

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.inner.init(capable & OFFERED)?;
        Ok(OFFERED)
    }

    fn destroy(&self) {
        self.inner.destroy();
        self.limit.clear();
    }

    fn statfs(&self, context: &Context, inode: Inode) -> io::Result<statvfs64> {
        self.inner.statfs(context, inode)
    }

    fn lookup(&self, context: &Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        // The guest's kernel knows what these are, without asking.
        if matches!(name.to_bytes(), b"" | b"." | b"..") {
            return Err(errno(libc::EINVAL));
        }
        let entry = self.inner.lookup(context, parent, name)?;
        self.tell(context, entry)
    }

    fn forget(&self, context: &Context, inode: Inode, count: u64) {
        self.inner.forget(context, inode, count);
        self.limit.forget(inode, count);
    }

    fn getattr(
        &self,
        context: &Context,
        inode: Inode,
        handle: Option<Handle>,
    ) -> io::Result<(stat64, Duration)> {
        self.inner.getattr(context, inode, handle)
    }

    fn setattr(
        &self,
        context: &Context,
        inode: Inode,
        attr: stat64,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.writable()?;
        self.inner.setattr(context, inode, attr, handle, valid)
    }

    fn access(&self, context: &Context, inode: Inode, mask: u32) -> io::Result<()> {
        self.inner.access(context, inode, mask)
    }

    fn readlink(&self, context: &Context, inode: Inode) -> io::Result<Vec<u8>> {
        self.inner.readlink(context, inode)
    }

    fn symlink(
        &self,
        context: &Context,
        target: &CStr,
        parent: Inode,
        name: &CStr,
    ) -> io::Result<Entry> {
        self.writable()?;
        let entry = self.inner.symlink(context, target, parent, name)?;
        self.tell(context, entry)
    }

    fn mknod(
        &self,
        context: &Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        // A device file would be one of the host's devices.
        if matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
            return Err(errno(libc::EPERM));
        }
        let entry = self.inner.mknod(context, parent, name, mode, rdev, umask)?;
        self.tell(context, entry)
    }

    fn mkdir(
        &self,
        context: &Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        let entry = self.inner.mkdir(context, parent, name, mode, umask)?;
        self.tell(context, entry)
    }

    fn unlink(&self, context: &Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.writable()?;
        self.inner.unlink(context, parent, name)
    }

    fn rmdir(&self, context: &Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.writable()?;
        self.inner.rmdir(context, parent, name)
    }

    fn rename(
        &self,
        context: &Context,
        from: Inode,
        old: &CStr,
        to: Inode,
        new: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        // A whiteout is a device file.
        if flags & libc::RENAME_WHITEOUT != 0 {
            return Err(errno(libc::EINVAL));
        }
        self.inner.rename(context, from, old, to, new, flags)
    }

    fn link(
        &self,
        context: &Context,
        inode: Inode,
        parent: Inode,
        name: &CStr,
    ) -> io::Result<Entry> {
        self.writable()?;
        let entry = self.inner.link(context, inode, parent, name);
        let entry = entry.map_err(|error| match error.raw_os_error() {
            // linkat(2): before Linux 6.10 only root may link what it has a descriptor of.
            Some(libc::ENOENT) => errno(libc::EPERM),
            _ => error,
        })?;
        self.tell(context, entry)
    }

    fn open(
        &self,
        context: &Context,
        inode: Inode,
        asked: u32,
        fuse: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions, Option<u32>)> {
        let flags = flags(asked) & !libc::O_EXCL.cast_unsigned();
        let writes = (libc::O_ACCMODE | libc::O_TRUNC).cast_unsigned();
        if flags & writes != libc::O_RDONLY.cast_unsigned() {
            self.writable()?;
        }
        self.opened(|| self.inner.open(context, inode, flags, fuse))
    }

    fn create(
        &self,
        context: &Context,
        parent: Inode,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions, Option<u32>)> {
        self.writable()?;
        args.flags = flags(args.flags);
        self.opened(|| {
            let (entry, handle, options, passthrough) =
                self.inner.create(context, parent, name, args)?;
            let inode = entry.inode;
            match self.tell(context, entry) {
                Ok(entry) => Ok((entry, handle, options, passthrough)),
                Err(error) => {
                    let handle = handle.unwrap_or_default();
                    let _ = self
                        .inner
                        .release(context, inode, 0, handle, false, false, None);
                    Err(error)
                }
            }
        })
    }

    fn read(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        asked: u32,
    ) -> io::Result<usize> {
        let flags = flags(asked);
        self.inner
            .read(context, inode, handle, to, size, offset, owner, flags)
    }

    fn write(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        asked: u32,
        fuse: u32,
    ) -> io::Result<usize> {
        self.writable()?;
        let flags = flags(asked);
        self.inner.write(
            context, inode, handle, from, size, offset, owner, delayed, flags, fuse,
        )
    }

    fn flush(&self, context: &Context, inode: Inode, handle: Handle, owner: u64) -> io::Result<()> {
        self.inner.flush(context, inode, handle, owner)
    }

    fn fsync(
        &self,
        context: &Context,
        inode: Inode,
        data_only: bool,
        handle: Handle,
    ) -> io::Result<()> {
        self.inner.fsync(context, inode, data_only, handle)
    }

    fn fallocate(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.writable()?;
        self.inner
            .fallocate(context, inode, handle, mode, offset, length)
    }

    fn lseek(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        self.inner.lseek(context, inode, handle, offset, whence)
    }

    fn release(
        &self,
        context: &Context,
        inode: Inode,
        flags: u32,
        handle: Handle,
        flush: bool,
        unlock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        let released = self
            .inner
            .release(context, inode, flags, handle, flush, unlock, owner);
        self.closed(released)
    }

    fn opendir(
        &self,
        context: &Context,
        inode: Inode,
        _asked: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        let flags = libc::O_RDONLY.cast_unsigned();
        self.opened(|| self.inner.opendir(context, inode, flags))
    }

    fn readdir(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.inner
            .readdir(context, inode, handle, size, offset, add)
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        // The pass-through's own would tell the guest of more files than it may know of.
        let mut with_entry = |name: DirEntry<'_>| {
            let Some(entry) = self.entry(context, inode, name.name)? else {
                return Ok(1);
            };
            let told = entry.inode;
            let added = add(name, entry);
            if told != 0 && !matches!(added, Ok(1..)) {
                self.forget(context, told, 1);
            }
            added
        };
        self.inner
            .readdir(context, inode, handle, size, offset, &mut with_entry)
    }

    fn fsyncdir(
        &self,
        context: &Context,
        inode: Inode,
        data_only: bool,
        handle: Handle,
    ) -> io::Result<()> {
        self.inner.fsyncdir(context, inode, data_only, handle)
    }

    fn releasedir(
        &self,
        context: &Context,
        inode: Inode,
        flags: u32,
        handle: Handle,
    ) -> io::Result<()> {
        let released = self.inner.releasedir(context, inode, flags, handle);
        self.closed(released)
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("limit", &self.limit)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}
