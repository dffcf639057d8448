//! What lies between the kernel and this program that no library does for a program without libc: the
//! entry, memory, and four system calls.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::Cell;
use core::ffi::{CStr, c_char};
use core::ptr;

use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Errno;

// The kernel enters with the stack pointer at argc, argv follows (System V ABI x86-64, §3.4.1).
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    entry = sym entry,
);

unsafe extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: `stack` is the initial stack pointer: argc, then as many pointers to strings, which stay
    // where they are for the life of the process.
    let args = unsafe {
        let count = stack.read();
        core::slice::from_raw_parts(stack.add(1).cast::<*const c_char>(), count)
    };
    crate::main(args)
}

/// Words of this process's own command line, by their place.
pub fn arg(args: &[*const c_char], index: usize) -> Option<&'static CStr> {
    // SAFETY: the kernel's own strings, see `entry`.
    args.get(index)
        .map(|arg| unsafe { CStr::from_ptr::<'static>(*arg) })
}

// Where the compiler puts calls of these, and there is no libc to have them.
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp, strlen",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jae 2f",
    // The destination begins inside the source: from the end.
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "2: rep movsb",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "mov rcx, rdx",
    "xor eax, eax",
    "test rcx, rcx",
    "je 3f",
    "repe cmpsb",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub ecx, eax",
    "mov eax, ecx",
    "3: ret",
    "strlen:",
    "xor eax, eax",
    "mov rcx, -1",
    "repne scasb",
    "not rcx",
    "lea rax, [rcx - 1]",
    "ret",
);

// `core` and `alloc` come compiled for unwinding; with `panic = "abort"` nothing ever gets here.
global_asm!(
    ".globl _Unwind_Resume, rust_eh_personality",
    "_Unwind_Resume:",
    "rust_eh_personality:",
    "ud2",
);

/// Memory that is handed out once, front to back; only what was handed out last comes back. The program
/// allocates what it needs when it starts, and then a few bytes now and then.
struct Arena {
    next: Cell<usize>,
    end: Cell<usize>,
}

// SAFETY: this program has one thread.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena {
    next: Cell::new(0),
    end: Cell::new(0),
};

/// Address space for the arena; pages are there once they are touched.
const ARENA_SIZE: usize = 1 << 30;

// SAFETY: blocks are disjoint parts of one mapping that lives as long as the process.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.end.get() == 0 {
            let Some(start) = map(ARENA_SIZE) else {
                return ptr::null_mut();
            };
            self.next.set(start);
            self.end.set(start + ARENA_SIZE);
        }
        let start = self.next.get().next_multiple_of(layout.align());
        match start.checked_add(layout.size()) {
            Some(end) if end <= self.end.get() => {
                self.next.set(end);
                ptr::with_exposed_provenance_mut(start)
            }
            _ => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if block.addr() + layout.size() == self.next.get() {
            self.next.set(block.addr());
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let start = block.addr();
        // What was handed out last grows and shrinks where it is.
        if start + layout.size() == self.next.get() && start + size <= self.end.get() {
            self.next.set(start + size);
            return block;
        }
        // SAFETY: the caller's promise.
        let new = unsafe {
            let layout = Layout::from_size_align_unchecked(size, layout.align());
            self.alloc(layout)
        };
        if !new.is_null() {
            // SAFETY: both blocks have at least this many bytes, and are disjoint.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
        }
        new
    }
}

/// System call numbers, `arch/x86/entry/syscalls/syscall_64.tbl`.
mod nr {
    pub const MMAP: usize = 9;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const FORK: usize = 57;
    pub const EXECVE: usize = 59;
    pub const EXIT_GROUP: usize = 231;
    pub const SIGNALFD4: usize = 289;
}

/// # Safety
/// As the call demands.
unsafe fn syscall(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the kernel changes rax, rcx and r11, and what the caller has vouched for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno::from_raw_os_error(
            i32::try_from(-result).unwrap_or(0),
        )),
    }
}

fn map(size: usize) -> Option<usize> {
    /// `PROT_READ | PROT_WRITE`.
    const READ_WRITE: usize = 3;
    /// `MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE`.
    const FLAGS: usize = 0x2 | 0x20 | 0x4000;
    // SAFETY: a new mapping touches nothing that is there.
    let mapped = unsafe { syscall(nr::MMAP, [0, size, READ_WRITE, FLAGS, usize::MAX, 0]) };
    mapped.ok()
}

/// Ends the process.
pub fn exit(status: u8) -> ! {
    // SAFETY: it does not return.
    let _ = unsafe { syscall(nr::EXIT_GROUP, [status.into(), 0, 0, 0, 0, 0]) };
    loop {
        core::hint::spin_loop();
    }
}

/// Which of the two processes after a fork this is.
pub enum Forked {
    /// The new one.
    Child,
    /// The old one, and the other's number.
    Parent(i32),
}

/// Makes a copy of this process.
pub fn fork() -> Result<Forked, Errno> {
    // SAFETY: the program has one thread, so the child is whole.
    match unsafe { syscall(nr::FORK, [0; 6]) }? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(i32::try_from(pid).unwrap_or(0))),
    }
}

/// Becomes another program; returns only if that is not possible. The lists end in a null pointer.
pub fn execve(path: &CStr, argv: &[*const c_char], envp: &[*const c_char]) -> Errno {
    if argv.last() != Some(&ptr::null()) || envp.last() != Some(&ptr::null()) {
        return Errno::INVAL;
    }
    let args = [
        path.as_ptr().addr(),
        argv.as_ptr().addr(),
        envp.as_ptr().addr(),
        0,
        0,
        0,
    ];
    // SAFETY: the strings and lists end as they must, and outlive the call.
    match unsafe { syscall(nr::EXECVE, args) } {
        Err(errno) => errno,
        Ok(_) => Errno::INVAL,
    }
}

/// `SIG_BLOCK` and `SIG_UNBLOCK`.
fn mask(how: usize, signals: u64) -> Result<(), Errno> {
    let set = ptr::from_ref(&signals).addr();
    // SAFETY: the kernel reads the eight bytes of the set.
    unsafe { syscall(nr::RT_SIGPROCMASK, [how, set, 0, 8, 0, 0]) }.map(drop)
}

/// Lets `signals`, a bit for each from 1 on, be read from a descriptor instead.
pub fn signal_fd(signals: u64) -> Result<OwnedFd, Errno> {
    /// `SFD_NONBLOCK | SFD_CLOEXEC`.
    const FLAGS: usize = 0o4000 | 0o2_000_000;
    mask(0, signals)?;
    let set = ptr::from_ref(&signals).addr();
    // SAFETY: the kernel reads the eight bytes of the set, and hands out a new descriptor.
    unsafe {
        let fd = syscall(nr::SIGNALFD4, [usize::MAX, set, 8, FLAGS, 0, 0])?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)))
    }
}

/// Lets all signals through, as a new program expects it.
pub fn unblock_signals() -> Result<(), Errno> {
    mask(1, u64::MAX)
}
