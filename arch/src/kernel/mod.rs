//! Kernel images, the initrd and the command line: told apart, checked, and put into guest memory.
//!
//! Files are hostile until checked: every offset, size and address is verified against the file and
//! the memory before linux-loader copies the image, and nothing here panics on what a file says.
//! Images are read straight into guest memory. Called once per boot, by the thread that builds the VM.
//!
//! | image | told by | entered through |
//! |---|---|---|
//! | bzImage | `HdrS` at 0x202 | the 64-bit entry, 0x200 past its start |
//! | ELF64, a Linux vmlinux | `e_entry` in a segment linked at `__START_KERNEL_map` | `e_entry`, 64-bit protocol |
//! | ELF64 with a PVH note | `XEN_ELFNOTE_PHYS32_ENTRY` | the note's address, 32-bit PVH protocol |
//! | any other ELF64 | `e_entry` in a segment's physical range | `e_entry`, 64-bit protocol |
//!
//! The first row that matches decides. A vmlinux as Linux builds it has a PVH note as well; it is
//! entered through the 64-bit protocol, which starts it in the mode it wants to be in.
//! Protocols: Documentation/arch/x86/boot.rst ("64-bit Boot Protocol") and Xen's docs/misc/pvh.pandoc.

mod bzimage;
mod elf;
mod error;
mod hint;
mod identify;
#[cfg(any(test, feature = "testing"))]
pub mod image;
mod initrd;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use self::error::{KernelError, Part};
use self::identify::Image;
pub use self::identify::{Compression, Lookalike};
pub use self::initrd::Initrd;
use crate::x86_64::layout;
use crate::x86_64::memory::filled_at_start;

/// Kinds of kernel, by the way they are entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// An ELF64 image entered through the 64-bit Linux boot protocol.
    Elf,
    /// An ELF64 image entered through its PVH note.
    Pvh,
    /// A compressed Linux kernel.
    BzImage,
}

/// Where and in which mode the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit Linux boot protocol: long mode, identity-mapped, RSI is the zero page.
    Linux64 {
        /// Guest physical address of the first instruction.
        rip: u64,
    },
    /// PVH: 32-bit protected mode without paging, EBX is the start info.
    Pvh {
        /// Guest physical address of the first instruction.
        rip: u32,
    },
}

/// A kernel in guest memory, and all that the boot code needs to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Which kind of image it was.
    pub kind: KernelKind,
    /// Where it starts.
    pub entry: Entry,
    /// The guest physical range that is the kernel's until it runs its own memory management: the
    /// image with its zeroed data, for a bzImage the room to unpack too (`init_size`).
    pub kernel: Range<u64>,
    /// The guest physical range of the initrd.
    pub initrd: Option<Range<u64>>,
    /// A bzImage's own setup header, to go into the zero page.
    pub setup_header: Option<setup_header>,
}

impl Loaded {
    /// What to tell a user whose VM has `memory` bytes: too few for this kernel and initrd to get to
    /// an init by any means, though they fit. None when it may work.
    #[must_use]
    pub fn memory_hint(&self, memory: u64) -> Option<String> {
        let initrd = self
            .initrd
            .as_ref()
            .map_or(0, |range| range.end - range.start);
        hint::memory_hint(self.kernel.end - self.kernel.start, initrd, memory)
    }
}

/// What a checked image asks for; nothing has been copied yet.
#[derive(Debug)]
struct Plan {
    kind: KernelKind,
    /// It is a Linux kernel, by the way it is packed or linked.
    linux: bool,
    entry: Entry,
    kernel: Range<u64>,
    setup_header: Option<setup_header>,
    /// Longest command line, without its NUL.
    cmdline_max: u64,
    /// The initrd ends at or below this address.
    initrd_limit: u64,
}

/// A kernel, an initrd and a command line that fit; nothing has been copied yet.
#[derive(Debug)]
pub struct Checked<'a> {
    plan: Plan,
    kernel: &'a mut File,
    initrd: Initrd<'a>,
    initrd_size: initrd::Size,
    initrd_start: u64,
    cmdline: &'a str,
}

/// Checks a kernel, an initrd and a command line for this memory. The files may be at any position; it
/// changes.
///
/// # Errors
/// Everything about the files, the command line and the size of memory that keeps a kernel from
/// starting. The message is one line without the file's name; [`KernelError::part`] says which of
/// the inputs it is about.
pub fn check<'a>(
    memory: &GuestMemoryMmap<()>,
    kernel: &'a mut File,
    initrd: impl Into<Initrd<'a>>,
    cmdline: &'a str,
) -> Result<Checked<'a>, KernelError> {
    let plan = examine(kernel)?;
    check_cmdline(cmdline, plan.cmdline_max)?;
    let mut initrd = initrd.into();
    let initrd_size = initrd.size()?;
    let initrd_start = initrd::place(&plan, initrd_size.whole, memory)?;
    Ok(Checked {
        plan,
        kernel,
        initrd,
        initrd_size,
        initrd_start,
        cmdline,
    })
}

impl Checked<'_> {
    /// The guest physical ranges of which a boot touches every page, or all but a few: the kernel with the memory
    /// that it clears or unpacks to, the initrd, and what Linux fills as it starts ([`filled_at_start`]).
    #[must_use]
    pub fn touched(&self, memory: &GuestMemoryMmap<()>) -> [Range<u64>; 4] {
        let initrd = self.initrd_start..self.initrd_start + self.initrd_size.whole;
        let [array, bounced] = match self.plan.linux {
            true => filled_at_start(memory, &initrd),
            false => [0..0, 0..0],
        };
        [self.plan.kernel.clone(), initrd, array, bounced]
    }

    /// Puts all of it into the memory it was checked for, which nothing has written to yet: the kernel
    /// where its image says, the initrd as high as the kernel can take it, the command line to
    /// [`layout::CMDLINE`].
    ///
    /// # Errors
    /// Reading failed, or a file has changed since it was checked.
    pub fn load(self, memory: &GuestMemoryMmap<()>) -> Result<Loaded, KernelError> {
        let plan = self.plan;
        copy_kernel(memory, self.kernel, &plan)?;
        let initrd = match self.initrd_size.whole {
            0 => None,
            _ => Some(
                self.initrd
                    .copy(memory, self.initrd_start, self.initrd_size)?,
            ),
        };
        let mut text = Vec::with_capacity(self.cmdline.len() + 1);
        text.extend_from_slice(self.cmdline.as_bytes());
        text.push(0);
        memory
            .write_slice(&text, GuestAddress(layout::CMDLINE))
            .map_err(KernelError::WriteCmdline)?;
        Ok(Loaded {
            kind: plan.kind,
            entry: plan.entry,
            kernel: plan.kernel,
            initrd,
            setup_header: plan.setup_header,
        })
    }
}

/// Whether a file is a Linux kernel that could be loaded. Reads headers only.
#[must_use]
pub fn is_linux(kernel: &mut File) -> bool {
    examine(kernel).is_ok_and(|plan| plan.linux)
}

/// Tells what a file is and checks all that it says of itself.
fn examine(kernel: &mut File) -> Result<Plan, KernelError> {
    let len = file_size(kernel)?;
    match identify::identify(kernel, len)? {
        Image::BzImage => bzimage::examine(kernel, len),
        Image::Elf => elf::examine(kernel, len),
    }
}

/// Copies an image whose plan is known to fit.
fn copy_kernel(
    memory: &GuestMemoryMmap<()>,
    kernel: &mut File,
    plan: &Plan,
) -> Result<(), KernelError> {
    let result = match plan.kind {
        KernelKind::BzImage => {
            BzImage::load(memory, Some(GuestAddress(plan.kernel.start)), kernel, None)
        }
        // The offset is added to every segment's address. Giving one, of 0, also keeps linux-loader
        // from reading the notes, which have been read, and of which it knows only the last.
        KernelKind::Elf | KernelKind::Pvh => Elf::load(memory, Some(GuestAddress(0)), kernel, None),
    };
    result.map_err(KernelError::Copy)?;
    Ok(())
}

fn check_cmdline(cmdline: &str, max: u64) -> Result<(), KernelError> {
    let len = cmdline.len() as u64;
    if cmdline.contains('\0') {
        return Err(KernelError::CmdlineNul);
    }
    // The kernel may promise more than the room that is kept.
    let max = max.min(layout::CMDLINE_ROOM - 1);
    if len > max {
        return Err(KernelError::CmdlineTooLong { len, max });
    }
    Ok(())
}

/// The size of a file that can be read at any place, a block device too.
fn file_size(file: &mut File) -> Result<u64, KernelError> {
    if file.metadata().map_err(KernelError::Read)?.is_dir() {
        return Err(KernelError::Directory);
    }
    match file.seek(SeekFrom::End(0)) {
        Ok(0) => Err(KernelError::Empty),
        Ok(len) => Ok(len),
        Err(error) if error.kind() == io::ErrorKind::NotSeekable => Err(KernelError::NotSeekable),
        Err(error) => Err(KernelError::Read(error)),
    }
}
