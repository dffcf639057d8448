//! Guest memory: names for it, so that a change of the backing type happens in one place, and a way to
//! give parts of it back to the host, and to get it in large pieces.

mod discard;
mod huge;
mod stretch;

pub use discard::discard;
pub use huge::ask_for_huge_pages;
pub(crate) use stretch::{Stretch, slice};
pub use vm_memory::GuestAddress;

/// Guest physical memory as every device sees it: cheap to clone, all clones share the mappings.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// A run of host-mapped guest bytes. Reads and writes through it are volatile: the guest may change
/// them at any time.
pub type GuestSlice<'a> = vm_memory::VolatileSlice<'a, ()>;
