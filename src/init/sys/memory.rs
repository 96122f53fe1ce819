//! Memory, and what the compiler calls for it.

use core::ops::{Deref, DerefMut};

use super::{MMAP, MUNMAP, Result, call};

/// Anonymous memory: zero, and costing nothing until it is written to.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn new(len: usize) -> Result<Mapping> {
        const MAP_PRIVATE: usize = 0x02;
        Mapping::of(len, MAP_PRIVATE)
    }

    /// Memory that a child which is forked from now on has in common with this process.
    pub fn shared(len: usize) -> Result<Mapping> {
        const MAP_SHARED: usize = 0x01;
        Mapping::of(len, MAP_SHARED)
    }

    fn of(len: usize, sharing: usize) -> Result<Mapping> {
        const PROT_READ_WRITE: usize = 1 | 2;
        const MAP_ANONYMOUS: usize = 0x20;
        let no_file = -1_isize as usize;
        // SAFETY: a new mapping, at an address of the kernel's choice. It refuses a length of 0.
        let at =
            unsafe { call(MMAP, [0, len.max(1), PROT_READ_WRITE, MAP_ANONYMOUS | sharing, no_file, 0]) }?;
        Ok(Mapping { at: at as *mut u8, len })
    }

    /// Keeps it for as long as the process lives.
    pub fn leak(self) -> &'static mut [u8] {
        let mut kept = core::mem::ManuallyDrop::new(self);
        // SAFETY: ours alone, as in `deref_mut`, and never unmapped from here on.
        unsafe { core::slice::from_raw_parts_mut(kept.as_mut_ptr(), kept.len) }
    }
}

/// Moves a value into memory of its own, where it stays for as long as the process lives. For what is large, and needed by
/// some processes only: on the stack it would cost all of them.
pub fn keep<T>(value: T) -> Result<&'static T> {
    let memory = Mapping::new(size_of::<T>())?.leak();
    let at: *mut T = memory.as_mut_ptr().cast();
    assert!(align_of::<T>() <= 4096);
    // SAFETY: the mapping is as long as wanted, aligned to a page, ours alone, and never unmapped.
    unsafe {
        at.write(value);
        Ok(&*at)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing borrows from it any more.
        let _ = unsafe { call(MUNMAP, [self.at as usize, self.len.max(1)]) };
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped, initialized by the kernel, of this length.
        unsafe { core::slice::from_raw_parts(self.at, self.len) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

/// What the compiler calls for copies and comparisons, as libc would provide it. In assembler, or with
/// volatile reads, where it might otherwise recognize the loop and replace it with a call to itself.
mod mem {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        // SAFETY: the caller promises `n` bytes at both, not overlapping. The direction flag is clear, by the ABI.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "2:",
                "subs {n}, {n}, #16",
                "b.lo 3f",
                "ldp {a}, {b}, [{from}], #16",
                "stp {a}, {b}, [{to}], #16",
                "b 2b",
                "3:",
                "adds {n}, {n}, #16",
                "b.eq 5f",
                "4:",
                "ldrb {a:w}, [{from}], #1",
                "strb {a:w}, [{to}], #1",
                "subs {n}, {n}, #1",
                "b.ne 4b",
                "5:",
                n = inout(reg) n => _, to = inout(reg) to => _, from = inout(reg) from => _,
                a = out(reg) _, b = out(reg) _,
                options(nostack),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        // Copying forwards is wrong only if the destination begins inside the source.
        if (to as usize).wrapping_sub(from as usize) >= n {
            // SAFETY: the caller promises `n` bytes at both; a forward copy byte by byte, or of 16 bytes
            // read before they are written, is right for a destination that lies lower.
            return unsafe { memcpy(to, from, n) };
        }
        // SAFETY: as above; from the last byte down, and the direction flag is clear again afterwards.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "std", "rep movsb", "cld",
                inout("rcx") n => _,
                inout("rdi") to.wrapping_add(n).wrapping_sub(1) => _,
                inout("rsi") from.wrapping_add(n).wrapping_sub(1) => _,
                options(nostack),
            );
        }
        // SAFETY: as above; `n` is not 0 here.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "2:",
                "ldrb {a:w}, [{from}, #-1]!",
                "strb {a:w}, [{to}, #-1]!",
                "subs {n}, {n}, #1",
                "b.ne 2b",
                n = inout(reg) n => _,
                to = inout(reg) to.wrapping_add(n) => _,
                from = inout(reg) from.wrapping_add(n) => _,
                a = out(reg) _,
                options(nostack),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
        // SAFETY: the caller promises `n` writable bytes.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "rep stosb",
                inout("rcx") n => _, inout("rdi") to => _, in("al") byte as u8,
                options(nostack, preserves_flags),
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "cbz {n}, 3f",
                "2:",
                "strb {byte:w}, [{to}], #1",
                "subs {n}, {n}, #1",
                "b.ne 2b",
                "3:",
                n = inout(reg) n => _, to = inout(reg) to => _, byte = in(reg) byte,
                options(nostack),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        for i in 0..n {
            // SAFETY: the caller promises `n` readable bytes at both.
            let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
            if x != y {
                return i32::from(x) - i32::from(y);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        // SAFETY: the same promise.
        unsafe { memcmp(a, b, n) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(s: *const u8) -> usize {
        let mut n = 0;
        // SAFETY: the caller promises a NUL at the end.
        while unsafe { s.add(n).read_volatile() } != 0 {
            n += 1;
        }
        n
    }
}
