//! FUSE messages as a guest's kernel makes them, for tests.

/// What a message asks for.
#[allow(missing_docs)]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
}

/// The number of the shared directory itself.
pub const ROOT: u64 = 1;
/// `struct fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// `struct fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// The number that messages here have.
pub const UNIQUE: u64 = 0x5eed_0000_0001;

/// The body of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Body(pub Vec<u8>);

impl Body {
    /// A body of 32-bit fields.
    #[must_use]
    pub fn words<const N: usize>(words: [u32; N]) -> Self {
        Self(words.into_iter().flat_map(u32::to_le_bytes).collect())
    }

    /// A body of 64-bit fields.
    #[must_use]
    pub fn longs<const N: usize>(longs: [u64; N]) -> Self {
        Self(longs.into_iter().flat_map(u64::to_le_bytes).collect())
    }

    /// A name.
    #[must_use]
    pub fn name(name: &str) -> Self {
        Self::default().and_name(name)
    }

    /// With more behind it.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// With a name behind it.
    #[must_use]
    pub fn and_name(mut self, name: &str) -> Self {
        self.0.extend(name.bytes());
        self.0.push(0);
        self
    }

    /// `struct fuse_read_in`, also for directories.
    #[must_use]
    pub fn read(handle: u64, offset: u64, size: u32) -> Self {
        Self::longs([handle, offset])
            .and(Self::words([size, 0]))
            .and(Self::longs([0, 0]))
    }

    /// `struct fuse_write_in` and what is written.
    #[must_use]
    pub fn write(handle: u64, offset: u64, bytes: &[u8]) -> Self {
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // O_WRONLY, as the file was opened.
        Self::longs([handle, offset])
            .and(Self::words([size, 0]))
            .and(Self::longs([0]))
            .and(Self::words([1, 0]))
            .and(Self(bytes.to_vec()))
    }

    /// `struct fuse_setattr_in` for a new mode.
    #[must_use]
    pub fn mode(mode: u32) -> Self {
        Self::words([1, 0])
            .and(Self::longs([0; 6]))
            .and(Self::words([0, 0, 0, mode, 0, 0, 0, 0]))
    }

    /// `struct fuse_init_in` of protocol 7.38, asking for `features`.
    #[must_use]
    pub fn init(features: u64) -> Self {
        let [a, b, c, d, high @ ..] = features.to_le_bytes();
        Self::words([7, 38, 0x2_0000])
            .and(Self(vec![a, b, c, d]))
            .and(Self(high.to_vec()))
            .and(Self::words([0; 11]))
    }
}

/// A whole message about `node`.
#[must_use]
pub fn message(opcode: u32, node: u64, body: &Body) -> Vec<u8> {
    let len = u32::try_from(IN_HEADER + body.0.len()).unwrap_or(u32::MAX);
    Body::words([len, opcode])
        .and(Body::longs([UNIQUE, node]))
        .and(Body::words([1000, 1000, 1, 0]))
        .and(body.clone())
        .0
}
