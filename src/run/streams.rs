//! The job's standard input, and whether it has a terminal.

use std::io::IsTerminal;

use apppot_contract::{Stdin, Terminal};

use crate::cli::MachineArgs;
use crate::session::terminal;

/// Where the job's standard input comes from, and whether it has a terminal.
pub(super) fn streams(args: &MachineArgs) -> (Stdin, Option<Terminal>) {
    if args.no_stdin {
        return (Stdin::Null, None);
    }
    if args.tty || (terminal::is_interactive() && !args.no_tty) {
        let (rows, columns) = terminal::size().unwrap_or((24, 80));
        let term = std::env::var("TERM").unwrap_or_else(|_| String::from("dumb"));
        let terminal = Terminal {
            term,
            rows,
            columns,
        };
        return (Stdin::Link, Some(terminal));
    }
    let stdin = std::io::stdin();
    let unusable = stdin.is_terminal() && !terminal::is_foreground();
    match unusable || is_null() {
        true => (Stdin::Null, None),
        false => (Stdin::Link, None),
    }
}

/// Whether standard input is `/dev/null`; that is also what a closed one becomes.
pub(crate) fn is_null() -> bool {
    const NULL: (u64, u64) = (1, 3);
    nix::sys::stat::fstat(std::io::stdin()).is_ok_and(|stat| {
        let device = (
            nix::sys::stat::major(stat.st_rdev),
            nix::sys::stat::minor(stat.st_rdev),
        );
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && device == NULL
    })
}
