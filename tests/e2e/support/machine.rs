//! A machine that nobody has told of AppPot, as QEMU starts it by itself: by the boot loader of its disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{processes, Job};

/// Systems boot slowly without hardware virtualisation.
const PATIENCE: Duration = Duration::from_secs(420);

/// Killed when it is dropped, and when the thread that has started it ends.
#[derive(Debug)]
pub(crate) struct Machine {
    process: Child,
    console: PathBuf,
}

impl Machine {
    /// With this disk and further arguments.
    pub(crate) fn start(job: &Job, disk: &Path, args: &[&str]) -> Self {
        let console = job.beside("console");
        Self::boot(console, &format!("file={}", disk.display()), args)
    }

    /// With a disk that stays as it is: what is written is lost.
    pub(crate) fn of_image(console: PathBuf, image: &Path, args: &[&str]) -> Self {
        let drive = format!("snapshot=on,file={}", image.display());
        Self::boot(console, &drive, args)
    }

    fn boot(console: PathBuf, drive: &str, args: &[&str]) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "512M"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args([
                "-device",
                "nvme,serial=root,drive=root,bootindex=0",
                "-drive",
            ])
            .arg(format!("if=none,id=root,format=raw,{drive}"))
            .args(args)
            .stdin(Stdio::null());
        processes::end_with_thread(&mut command);
        let process = processes::spawn(&mut command).unwrap();
        Machine { process, console }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn says(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Whether it has powered itself off, or was killed.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Waits for something.
    pub(crate) fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(
                !self.has_ended(),
                "{what}: the machine has ended: {}",
                self.says()
            );
            assert!(Instant::now() < end, "not in time: {what}: {}", self.says());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it has powered itself off.
    pub(crate) fn ends(&mut self) {
        let end = Instant::now() + PATIENCE;
        while !self.has_ended() {
            assert!(Instant::now() < end, "it does not end: {}", self.says());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
