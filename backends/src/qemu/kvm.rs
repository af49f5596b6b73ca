//! Which accelerator QEMU gets: KVM, when it really executes guest code.
//!
//! On some hosts (machines inside machines, mostly) `/dev/kvm` can be opened and makes virtual
//! machines, but their instructions are interpreted, a thousand times slower: a boot never ends there.
//! So a loop is run that takes hardware far less than a millisecond and an interpreter a tenth
//! of a second. What came out holds until the host boots again.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use nix::sys::signal::{
    sigaction, SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal,
};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::cache;

/// What executes the guest's instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's translator, in software.
    Tcg {
        /// Why it is not the processor.
        reason: String,
    },
}

impl Accelerator {
    /// Whether it is the host's processor.
    #[must_use]
    pub fn is_kvm(&self) -> bool {
        *self == Accelerator::Kvm
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Accelerator::Kvm => f.write_str("KVM"),
            Accelerator::Tcg { reason } => write!(f, "TCG ({reason})"),
        }
    }
}

/// What a guest's instructions are executed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Processor,
    Interpreter,
}

/// The accelerator for this host and user.
#[must_use]
pub fn accelerator() -> Accelerator {
    choose(usable(), verdict)
}

/// Whether this user may use `/dev/kvm`.
fn usable() -> io::Result<()> {
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    device.map(drop)
}

fn choose(usable: io::Result<()>, verdict: impl FnOnce() -> io::Result<Verdict>) -> Accelerator {
    let tcg = |reason: String| Accelerator::Tcg { reason };
    if let Err(error) = usable {
        return tcg(format!("/dev/kvm: {error}"));
    }
    match verdict() {
        Ok(Verdict::Processor) => Accelerator::Kvm,
        Ok(Verdict::Interpreter) => tcg(String::from(
            "/dev/kvm exists, but interprets what guests execute",
        )),
        Err(error) => tcg(format!("/dev/kvm does not work: {error}")),
    }
}

/// What came out since the host's boot, else what comes out now.
fn verdict() -> io::Result<Verdict> {
    let place = place();
    let kept = place.as_ref().and_then(|place| std::fs::read(place).ok());
    match kept.as_deref() {
        Some(b"processor") => return Ok(Verdict::Processor),
        Some(b"interpreter") => return Ok(Verdict::Interpreter),
        _ => {}
    }
    let verdict = probe()?;
    if let Some(place) = place {
        keep(&place, verdict);
    }
    Ok(verdict)
}

/// A file named after the host's present boot.
fn place() -> Option<PathBuf> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(cache::directory()?.join("kvm").join(boot.trim()))
}

/// What cannot be kept only costs time.
fn keep(place: &std::path::Path, verdict: Verdict) {
    let earlier = place.parent().and_then(|parent| parent.read_dir().ok());
    for entry in earlier.into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    let word = match verdict {
        Verdict::Processor => "processor",
        Verdict::Interpreter => "interpreter",
    };
    let _ = cache::write(place, word);
}

/// Where the guest's code is.
const CODE_ADDRESS: u64 = 0x1000;
const PAGE: usize = 4096;
/// Counts down from 100,000, then halts.
#[rustfmt::skip]
const CODE: [u8; 11] = [
    0x66, 0xb9, 0xa0, 0x86, 0x01, 0x00, // mov ecx, 100000
    0x66, 0x49,                         // dec ecx
    0x75, 0xfc,                         // jnz back to dec
    0xf4,                               // hlt
];
/// Far more than a processor needs, and a third of what an interpreter does.
const PATIENCE: Duration = Duration::from_millis(30);

/// A page of memory for the guest.
struct Memory(*mut libc::c_void);

impl Memory {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match address {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            address => Ok(Memory(address)),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the virtual machine that uses it has gone before.
        unsafe { libc::munmap(self.0, PAGE) };
    }
}

/// Runs the loop in a virtual machine.
fn probe() -> io::Result<Verdict> {
    let memory = Memory::new()?;
    // SAFETY: the page is ours and larger than the code.
    unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), memory.0.cast(), CODE.len()) };
    let machine = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE_ADDRESS,
        memory_size: PAGE as u64,
        userspace_addr: memory.0 as u64,
    };
    // SAFETY: the page is mapped, and stays so until the machine has gone.
    unsafe { machine.set_user_memory_region(region) }?;
    let mut cpu = machine.create_vcpu(0)?;
    let mut special = cpu.get_sregs()?;
    special.cs.base = 0;
    special.cs.selector = 0;
    cpu.set_sregs(&special)?;
    let mut registers = cpu.get_regs()?;
    registers.rip = CODE_ADDRESS;
    registers.rflags = 2;
    cpu.set_regs(&registers)?;
    let verdict = with_alarm(|| run(&mut cpu))?;
    drop((cpu, machine));
    drop(memory);
    verdict
}

fn run(cpu: &mut VcpuFd) -> io::Result<Verdict> {
    match cpu.run() {
        Ok(VcpuExit::Hlt) => Ok(Verdict::Processor),
        Ok(other) => Err(io::Error::other(format!("{other:?}"))),
        Err(error) if error.errno() == libc::EINTR => Ok(Verdict::Interpreter),
        Err(error) => Err(error.into()),
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// Calls `action`, whose system calls are interrupted when it takes longer than [`PATIENCE`].
fn with_alarm<T>(action: impl FnOnce() -> T) -> io::Result<T> {
    // Without SA_RESTART: the system call returns.
    let signal = Signal::SIGALRM;
    let handler = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // It stays: an alarm that is still on its way would end the process.
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &handler) }?;
    let mut set = SigSet::empty();
    set.add(signal);
    let mask = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_UNBLOCK)?;
    let event = SigEvent::new(SigevNotify::SigevThreadId {
        signal,
        thread_id: nix::unistd::gettid().as_raw(),
        si_value: 0,
    });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)?;
    // Again and again: the first one may come before the action has begun.
    let period = TimeSpec::from_duration(PATIENCE);
    timer.set(
        Expiration::IntervalDelayed(period, period),
        TimerSetTimeFlags::empty(),
    )?;
    let result = action();
    drop(timer);
    mask.thread_set_mask()?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_processor_is_kvm() {
        let chosen = choose(Ok(()), || Ok(Verdict::Processor));
        assert_eq!(chosen, Accelerator::Kvm);
        let reason = |usable, verdict| match choose(usable, || verdict) {
            Accelerator::Tcg { reason } => reason,
            Accelerator::Kvm => String::from("KVM"),
        };
        let refused = || Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(
            reason(refused(), Ok(Verdict::Processor)),
            "/dev/kvm: permission denied"
        );
        let missing = Err(io::ErrorKind::NotFound.into());
        assert_eq!(
            reason(missing, Ok(Verdict::Processor)),
            "/dev/kvm: entity not found"
        );
        assert!(reason(Ok(()), Ok(Verdict::Interpreter)).contains("interprets"));
        let broken = Err(io::ErrorKind::Unsupported.into());
        assert!(reason(Ok(()), broken).contains("does not work"));
    }

    #[test]
    fn a_verdict_comes_soon_whatever_the_host_has() {
        let start = std::time::Instant::now();
        let _ = probe();
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn an_action_that_hangs_is_interrupted() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let result = with_alarm(|| nix::unistd::read(&read, &mut [0])).unwrap();
        assert_eq!(result, Err(nix::Error::EINTR));
    }
}
