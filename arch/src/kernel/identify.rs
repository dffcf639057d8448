//! What a file is, by its first bytes: a kernel that can be loaded, or something else with a name.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::elf;

use super::KernelError;

/// An image that can be examined further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    /// ELF64, little-endian, x86-64, linked.
    Elf,
    /// A Linux image with a setup header.
    BzImage,
}

/// Ways to compress a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Compression {
    Gzip,
    Xz,
    Zstd,
    Lz4,
    Bzip2,
    Lzma,
    Lzop,
}

impl Compression {
    /// Name of the format, and the program that unpacks it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Gzip => ("gzip", "gunzip"),
            Self::Xz => ("xz", "unxz"),
            Self::Zstd => ("zstd", "unzstd"),
            Self::Lz4 => ("lz4", "unlz4"),
            Self::Bzip2 => ("bzip2", "bunzip2"),
            Self::Lzma => ("lzma", "unlzma"),
            Self::Lzop => ("lzop", "lzop -d"),
        }
    }
}

/// What is given as a kernel, by mistake or by need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookalike {
    /// A compressed file, perhaps of a kernel.
    Compressed(Compression),
    /// An ELF file of 32 bits.
    Elf32,
    /// An ELF file for a big-endian machine.
    BigEndian,
    /// An ELF file for another machine (`e_machine`).
    Machine(u16),
    /// An object file or kernel module.
    Object,
    /// An ELF program of a Linux user space.
    Program,
    /// Some other ELF file, such as a core dump.
    OtherElf,
    /// A Linux image for arm64.
    Arm64Image,
    /// A compressed kernel packed as an EFI program (CONFIG_EFI_ZBOOT).
    EfiZboot,
    /// Another EFI or Windows program.
    EfiProgram,
    /// An initramfs archive.
    Cpio,
    /// A script.
    Script,
    /// Text.
    Text,
    /// A package.
    Archive,
    /// A disk or file system image.
    DiskImage,
    /// An image for U-Boot.
    UBoot,
    /// Nothing known.
    Unknown,
}

impl fmt::Display for Lookalike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WANTED: &str = "use an x86-64 vmlinux, bzImage or PVH ELF";
        let what = match self {
            Self::Compressed(format) => {
                let (name, program) = format.names();
                return write!(
                    f,
                    "is compressed with {name}; unpack it first, with {program}"
                );
            }
            Self::Machine(machine) => {
                return match machine_name(*machine) {
                    Some(name) => write!(f, "is built for {name}; {WANTED}"),
                    None => write!(
                        f,
                        "is built for another machine (ELF machine {machine}); {WANTED}"
                    ),
                };
            }
            Self::Cpio => {
                return f.write_str("is a cpio archive; give it as the initrd, not as the kernel");
            }
            Self::DiskImage => {
                return f.write_str("is a disk image; give it as a disk, not as the kernel");
            }
            Self::EfiZboot => {
                return f.write_str(
                    "is a compressed EFI kernel (CONFIG_EFI_ZBOOT); use the vmlinux or bzImage of the same build",
                );
            }
            Self::Elf32 => "is a 32-bit ELF file",
            Self::BigEndian => "is an ELF file for a big-endian machine",
            Self::Object => "is an object file or a kernel module, not a kernel",
            Self::Program => "is a program for Linux, not a kernel",
            Self::OtherElf => "is an ELF file but not an executable",
            Self::Arm64Image => "is a Linux image for arm64",
            Self::EfiProgram => "is an EFI or Windows program, not a Linux kernel",
            Self::Script => "is a script, not a kernel",
            Self::Text => "is text, not a kernel",
            Self::Archive => "is a package or archive, not a kernel",
            Self::UBoot => "is an image for U-Boot",
            Self::Unknown => "is not a kernel",
        };
        write!(f, "{what}; {WANTED}")
    }
}

/// Names of `e_machine` that kernels come for (System V gABI, "ELF Header").
fn machine_name(machine: u16) -> Option<&'static str> {
    Some(match machine {
        3 => "32-bit x86",
        20 | 21 => "PowerPC",
        22 => "s390",
        40 => "32-bit ARM",
        183 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return None,
    })
}

/// How much of the file is looked at: enough for the magic number of ext4 and of a partition table.
const HEAD: usize = 0x600;

/// Magic numbers at given offsets. Formats as in the file(1) database.
const SIGNATURES: &[(usize, &[u8], Lookalike)] = &[
    (0, b"\x1f\x8b", Lookalike::Compressed(Compression::Gzip)),
    (0, b"\xfd7zXZ\0", Lookalike::Compressed(Compression::Xz)),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        Lookalike::Compressed(Compression::Zstd),
    ),
    (
        0,
        b"\x04\x22\x4d\x18",
        Lookalike::Compressed(Compression::Lz4),
    ),
    (
        0,
        b"\x02\x21\x4c\x18",
        Lookalike::Compressed(Compression::Lz4),
    ),
    (0, b"BZh", Lookalike::Compressed(Compression::Bzip2)),
    (0, b"\x5d\0\0", Lookalike::Compressed(Compression::Lzma)),
    (0, b"\x89LZO\0", Lookalike::Compressed(Compression::Lzop)),
    (0, b"07070", Lookalike::Cpio),
    (0, b"\xc7\x71", Lookalike::Cpio),
    (0, b"#!", Lookalike::Script),
    (0, b"!<arch>\n", Lookalike::Archive),
    (0, b"PK\x03\x04", Lookalike::Archive),
    (0, b"\xed\xab\xee\xdb", Lookalike::Archive),
    (0x101, b"ustar", Lookalike::Archive),
    (0, b"QFI\xfb", Lookalike::DiskImage),
    (0, b"hsqs", Lookalike::DiskImage),
    (0, b"\x27\x05\x19\x56", Lookalike::UBoot),
    (0x38, b"ARM\x64", Lookalike::Arm64Image),
    (4, b"zimg", Lookalike::EfiZboot),
    (0, b"MZ", Lookalike::EfiProgram),
    (0x438, b"\x53\xef", Lookalike::DiskImage),
    (0x1fe, b"\x55\xaa", Lookalike::DiskImage),
];

/// Tells what `file` is, which has `len` bytes.
pub(super) fn identify(file: &File, len: u64) -> Result<Image, KernelError> {
    let mut buffer = [0; HEAD];
    let size = usize::try_from(len).map_or(HEAD, |len| len.min(HEAD));
    let head = &mut buffer[..size];
    read_at(file, head, 0)?;
    let head = &*head;
    if has(head, 0, b"\x7fELF") {
        return identify_elf(head, len);
    }
    // boot.rst "The Real-Mode Kernel Header": the magic number of protocol 2.00 and later.
    if has(head, 0x202, b"HdrS") && has(head, 0x1fe, b"\x55\xaa") {
        return Ok(Image::BzImage);
    }
    let known = SIGNATURES
        .iter()
        .find(|(at, magic, _)| has(head, *at, magic));
    Err(KernelError::NotAKernel(match known {
        Some(&(_, _, lookalike)) => lookalike,
        None if is_text(head) => Lookalike::Text,
        None => Lookalike::Unknown,
    }))
}

/// Tells by the ELF header whether it is an x86-64 executable (System V gABI, "ELF Header").
fn identify_elf(head: &[u8], len: u64) -> Result<Image, KernelError> {
    const HEADER_LEN: usize = size_of::<elf::Elf64_Ehdr>();
    const EI_CLASS: usize = 4;
    const EI_DATA: usize = 5;
    const ET_REL: u16 = 1;
    const ET_EXEC: u16 = 2;
    const ET_DYN: u16 = 3;
    const EM_X86_64: u16 = 62;

    let not = |lookalike| Err(KernelError::NotAKernel(lookalike));
    // A 32-bit header is shorter; its class is asked first so that the right thing is said.
    if head.get(EI_CLASS) == Some(&1) {
        return not(Lookalike::Elf32);
    }
    if head.len() < HEADER_LEN {
        return Err(KernelError::Truncated {
            what: "the ELF header",
            end: HEADER_LEN as u64,
            len,
        });
    }
    if head[EI_DATA] == 2 {
        return not(Lookalike::BigEndian);
    }
    if head[EI_CLASS] != 2 || head[EI_DATA] != 1 {
        return Err(KernelError::Malformed {
            what: "its ELF class or byte order is unknown",
        });
    }
    let e_type = u16::from_le_bytes([head[16], head[17]]);
    match u16::from_le_bytes([head[18], head[19]]) {
        EM_X86_64 => {}
        machine => return not(Lookalike::Machine(machine)),
    }
    match e_type {
        ET_EXEC | ET_DYN => Ok(Image::Elf),
        ET_REL => not(Lookalike::Object),
        _ => not(Lookalike::OtherElf),
    }
}

/// Whether `bytes` has `magic` at an offset.
fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

fn is_text(head: &[u8]) -> bool {
    head.iter()
        .all(|&byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..))
}

/// Reads all of `buffer` from the kernel at `offset`; the caller knows that the file is long enough.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), KernelError> {
    file.read_exact_at(buffer, offset)
        .map_err(|error| match error.kind() {
            // It was long enough a moment ago.
            io::ErrorKind::UnexpectedEof => KernelError::Malformed {
                what: "it became shorter",
            },
            _ => KernelError::Read(error),
        })
}
