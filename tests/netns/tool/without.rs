//! A program on a kernel without IPv6: no socket of that family is to be had.
#![expect(unsafe_code, reason = "prctl(2) with a filter")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::USAGE;

fn statement(code: u32, k: u32) -> Result<libc::sock_filter> {
    Ok(libc::sock_filter {
        code: u16::try_from(code)?,
        jt: 0,
        jf: 0,
        k,
    })
}

/// Goes on when the value loaded is `k`, else jumps over `over` statements.
fn only_if(k: u32, over: u8) -> Result<libc::sock_filter> {
    let code = u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K)?;
    Ok(libc::sock_filter {
        code,
        jt: 0,
        jf: over,
        k,
    })
}

/// `socket(AF_INET6, …)` answers `EAFNOSUPPORT` from now on, here and in whatever this process becomes.
fn refuse_ipv6() -> Result<()> {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let give = libc::BPF_RET | libc::BPF_K;
    let (number, first_argument) = if cfg!(target_endian = "little") {
        (0, 16)
    } else {
        (0, 20)
    };
    let refusal = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EAFNOSUPPORT)?;
    let filter = [
        statement(load, number)?,
        only_if(u32::try_from(libc::SYS_socket)?, 3)?,
        statement(load, first_argument)?,
        only_if(u32::try_from(libc::AF_INET6)?, 1)?,
        statement(give, refusal)?,
        statement(give, libc::SECCOMP_RET_ALLOW)?,
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len())?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the filter outlives the call, and the kernel copies it.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    ensure!(
        done == 0,
        "install the filter: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Becomes the program that the words name.
///
/// # Errors
/// The kernel takes no filter, or the program cannot be started.
pub fn ipv6(words: impl Iterator<Item = String>) -> Result<()> {
    let words: Vec<String> = words.collect();
    let (program, arguments) = words.split_first().context(USAGE)?;
    refuse_ipv6()?;
    let error = Command::new(program).args(arguments).exec();
    bail!("start {program}: {error}")
}
