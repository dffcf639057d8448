//! Builders of the smallest images that load, for tests.

#![allow(missing_docs)]

/// Virtual minus physical address in a Linux vmlinux.
pub const LINUX_MAP: u64 = 0xffff_ffff_8000_0000;

pub const PT_LOAD: u32 = 1;
pub const PT_INTERP: u32 = 3;
pub const PT_NOTE: u32 = 4;
pub const PT_TLS: u32 = 7;

/// A program header and what it points to.
#[derive(Debug, Clone)]
pub struct Segment {
    pub kind: u32,
    pub vaddr: u64,
    pub paddr: u64,
    /// Bytes in memory beyond those in the file.
    pub bss: u64,
    pub align: u64,
    pub contents: Vec<u8>,
}

impl Segment {
    pub fn load(paddr: u64, contents: &[u8]) -> Self {
        let contents = contents.to_vec();
        Self {
            kind: PT_LOAD,
            vaddr: paddr,
            paddr,
            bss: 0,
            align: 0x1000,
            contents,
        }
    }

    /// A load segment linked as Linux is.
    pub fn linux(paddr: u64, contents: &[u8]) -> Self {
        Self {
            vaddr: paddr.wrapping_add(LINUX_MAP),
            ..Self::load(paddr, contents)
        }
    }

    pub fn other(kind: u32, contents: &[u8]) -> Self {
        Self {
            kind,
            ..Self::load(0, contents)
        }
    }

    pub fn notes(notes: &[Vec<u8>]) -> Self {
        Self {
            align: 4,
            ..Self::other(PT_NOTE, &notes.concat())
        }
    }
}

/// An ELF64 executable.
#[derive(Debug, Clone)]
pub struct Elf {
    pub entry: u64,
    pub machine: u16,
    pub kind: u16,
    pub segments: Vec<Segment>,
}

impl Elf {
    pub fn new(entry: u64, segments: Vec<Segment>) -> Self {
        Self {
            entry,
            machine: 62,
            kind: 2,
            segments,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        out.extend(self.kind.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(self.entry.to_le_bytes());
        out.extend(64u64.to_le_bytes());
        out.extend([0; 12]);
        out.extend(64u16.to_le_bytes());
        out.extend(56u16.to_le_bytes());
        out.extend(u16::try_from(self.segments.len()).unwrap().to_le_bytes());
        out.extend([0; 6]);
        let mut offset = 64 + 56 * self.segments.len() as u64;
        for segment in &self.segments {
            let len = segment.contents.len() as u64;
            out.extend(segment.kind.to_le_bytes());
            out.extend(7u32.to_le_bytes());
            let numbers = [
                offset,
                segment.vaddr,
                segment.paddr,
                len,
                len + segment.bss,
                segment.align,
            ];
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            offset += len;
        }
        out.extend(
            self.segments
                .iter()
                .flat_map(|segment| segment.contents.iter().copied()),
        );
        out
    }
}

/// One ELF note, aligned to 4 bytes.
pub fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
    out.extend(u32::try_from(desc.len()).unwrap().to_le_bytes());
    out.extend(kind.to_le_bytes());
    for part in [name, desc] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

pub fn pvh_note(entry: u32) -> Vec<u8> {
    note(b"Xen\0", 18, &u64::from(entry).to_le_bytes())
}

/// A vmlinux as Linux builds it: a PVH note, and memory without contents.
pub fn vmlinux() -> Elf {
    let text = Segment {
        bss: 0x2000,
        ..Segment::linux(0x100_0000, &[0x90; 0x800])
    };
    Elf::new(
        0x100_0040,
        vec![text, Segment::notes(&[pvh_note(0x100_0080)])],
    )
}

/// A bzImage.
#[derive(Debug, Clone)]
pub struct Bz {
    pub setup_sects: u8,
    pub version: u16,
    pub loadflags: u8,
    pub xloadflags: u16,
    pub pref_address: u64,
    pub init_size: u32,
    pub initrd_addr_max: u32,
    pub cmdline_size: u32,
    /// Length of the setup header from 0x202 on.
    pub header_len: u8,
    pub payload: Vec<u8>,
}

impl Default for Bz {
    fn default() -> Self {
        Self {
            setup_sects: 1,
            version: 0x20f,
            loadflags: 1,
            xloadflags: 1,
            pref_address: 0x100_0000,
            init_size: 0x10_0000,
            initrd_addr_max: 0x7fff_ffff,
            cmdline_size: 2047,
            header_len: 0x6a,
            payload: vec![0xcc; 0x400],
        }
    }
}

impl Bz {
    pub fn bytes(&self) -> Vec<u8> {
        let sectors = if self.setup_sects == 0 {
            4
        } else {
            usize::from(self.setup_sects)
        };
        let mut out = vec![0; (sectors + 1) * 512];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[self.setup_sects]);
        put(
            0x1f4,
            &u32::try_from(self.payload.len() / 16)
                .unwrap()
                .to_le_bytes(),
        );
        put(0x1fe, &[0x55, 0xaa, 0xeb, self.header_len]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[self.loadflags]);
        put(0x22c, &self.initrd_addr_max.to_le_bytes());
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &self.cmdline_size.to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        put(0x264, &0x1234_5678u32.to_le_bytes());
        out.extend(&self.payload);
        out
    }
}
