//! The child of `run`, from its start until it becomes the program.
//!
//! It makes the namespaces, says so, and waits until it hears that its own is attached. Whoever may not make namespaces makes
//! them in a user namespace of its own, in which nobody but itself exists: the program has the same user, the same groups
//! and no capability that its caller had not.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use clap::Args;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid};
use rtnetlink::LinkUnspec;

use super::super::{blocking, print};
use super::failed;
use crate::api::types::{Error, ErrorKind, ErrorReply};
use crate::helper::has_capability;
use crate::model::error::Code;

/// The verb that this is.
pub(super) const VERB: &str = "run-inside";
/// What is said once the namespaces are there.
pub(super) const READY: &str = "ready\n";
/// What is heard once the namespace is attached; the text of the resolver file follows.
pub(super) const GO: &str = "go\n";

/// The file that names the resolver.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Sockets by which programs would ask the machine's own resolver instead, which answers as the machine sees the names.
const RESOLVERS_OF_MACHINE: [&str; 2] = [
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/nscd/socket",
];
/// Directories of which each machine has one. For a moment a file system of our own is mounted there.
const STAGES: [&str; 4] = ["/run", "/tmp", "/mnt", "/var"];
/// Numbers of capabilities (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
/// More capabilities than any kernel has.
const CAPABILITIES: u32 = 64;

#[derive(Debug, Args)]
pub(in crate::cli) struct InsideArgs {
    /// Number of the descriptor by which its parent is heard
    #[arg(long)]
    channel: i32,
    /// The program and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Becomes the program. Comes back only where that failed, with an exit code that its parent does not look at.
pub(in crate::cli) fn run(args: InsideArgs) -> u8 {
    let Ok(channel) = taken(args.channel) else {
        print::stderr("error: this is the inner part of: byway run\n");
        return 2;
    };
    if let Err(error) = prepare_and_become(&channel, &args.command) {
        let report = serde_json::to_string(&ErrorReply { error }).unwrap_or_default();
        // Where nobody hears it, nobody is there.
        let _ = (&channel).write_all(format!("{report}\n").as_bytes());
    }
    1
}

/// The channel, which the program is not to have.
#[expect(
    unsafe_code,
    reason = "a descriptor is inherited as a number, which only an unsafe call takes over"
)]
fn taken(number: i32) -> io::Result<UnixStream> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    if number < 3 || fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the descriptor is open, and was given to this process for this alone: nothing else here knows its number.
    let channel = unsafe { UnixStream::from_raw_fd(number) };
    fcntl(&channel, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(channel)
}

/// # Errors
/// Why the program was not run. None where its parent is gone.
fn prepare_and_become(channel: &UnixStream, command: &[OsString]) -> Result<(), Error> {
    make_namespaces()?;
    // The program ends with us, however that ends: what it leaves behind keeps no address.
    set_pdeathsig(Signal::SIGKILL).map_err(|e| failed("end with the parent", &e))?;
    let mut heard = BufReader::new(channel);
    let mut line = String::new();
    let said = (&*channel).write_all(READY.as_bytes());
    if said.and_then(|()| heard.read_line(&mut line)).is_err() || line != GO {
        return Ok(());
    }
    let mut resolver = String::new();
    heard
        .read_to_string(&mut resolver)
        .map_err(|e| failed("hear of the resolver", &e))?;
    if let Err(why) = set_resolver(&resolver) {
        print::stderr(&format!(
            "note: names of the subnet are not found by {RESOLV_CONF}: {why}\n"
        ));
    }
    become_program(command)
}

/// # Errors
/// `E-COMMAND` where the program is not found or cannot be run.
fn become_program(command: &[OsString]) -> Result<(), Error> {
    let [program, args @ ..] = command else {
        return Ok(());
    };
    let error = Command::new(program).args(args).exec();
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Failed,
    };
    let program = program.to_string_lossy();
    let message = format!("run {}: {error}", print::clean(&program));
    Err(Error::new(kind, Code::Command, message))
}

/// Makes the namespaces, with the loopback up and mounts that go nowhere else.
fn make_namespaces() -> Result<(), Error> {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if has_capability(CAP_SYS_ADMIN) && has_capability(CAP_NET_ADMIN) {
        unshare(own).map_err(|e| refused("make a network namespace", &e))?;
    } else {
        in_user_namespace(own)?;
    }
    let none = None::<&str>;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(none, "/", none, slave, none).map_err(|e| refused("keep mounts to itself", &e))?;
    // All ports are the program's own, those below 1024 too. Where that cannot be said they take a capability as elsewhere.
    let _ = fs::write(FIRST_FREE_PORT, "0");
    blocking(loopback()).map_err(|e| refused("bring lo up", &e.message))
}

/// The first port of the namespace that takes no capability.
const FIRST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Makes them in a user namespace, in which there is only the user that this is.
fn in_user_namespace(own: CloneFlags) -> Result<(), Error> {
    let (user, group) = (geteuid(), getegid());
    let had = permitted();
    unshare(own | CloneFlags::CLONE_NEWUSER).map_err(|e| refused("make a user namespace", &e))?;
    // A kernel that has this file takes the groups only after it.
    let lines = [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{group} {group} 1")),
        ("uid_map", format!("{user} {user} 1")),
    ];
    for (file, line) in lines {
        fs::write(Path::new("/proc/self").join(file), line)
            .map_err(|e| refused("be the same user in a user namespace", &e))?;
    }
    for capability in (0..CAPABILITIES).filter(|n| had & (1 << n) == 0) {
        drop_for_programs(capability);
    }
    Ok(())
}

/// The capabilities that this process may use, a bit for each.
fn permitted() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// No program that is run from now on has that capability. root would have all of them in a user namespace.
#[expect(unsafe_code, reason = "prctl(PR_CAPBSET_DROP) has no safe wrapper")]
fn drop_for_programs(capability: u32) {
    // SAFETY: the call takes numbers only. It is refused for a number that the kernel does not know.
    unsafe {
        libc::prctl(
            libc::PR_CAPBSET_DROP,
            libc::c_ulong::from(capability),
            0,
            0,
            0,
        )
    };
}

fn refused(what: &str, error: &dyn std::fmt::Display) -> Error {
    let message = format!("{what}: {error}");
    let hint = if geteuid().is_root() {
        "run it outside of a container, or in one that may make namespaces"
    } else {
        "the same as root, or: sysctl user.max_user_namespaces kernel.apparmor_restrict_unprivileged_userns      (1 or more, \
         and 0 or missing, let users make namespaces)"
    };
    Error::new(ErrorKind::NotPermitted, Code::Netns, message).hint(hint)
}

/// Brings the loopback up, which is the first link of every namespace.
async fn loopback() -> Result<(), Error> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|e| failed("open netlink", &e))?;
    let connection = tokio::spawn(connection);
    let up = LinkUnspec::new_with_index(1).up().build();
    let done = handle.link().set(up).execute().await;
    connection.abort();
    done.map_err(|e| failed("netlink", &e))
}

/// Puts the text in the place of the machine's resolver file, for this process and those it starts. The file itself is
/// covered, and so are the sockets of resolvers that would not read it.
///
/// # Errors
/// The reason, in words.
fn set_resolver(text: &str) -> Result<(), String> {
    // Taken hold of first: what is mounted below may cover them.
    let file = place(RESOLV_CONF).map_err(|e| format!("it is not there ({e})"))?;
    let sockets = RESOLVERS_OF_MACHINE.map(place);
    let stage = STAGES.iter().map(Path::new).find(|place| place.is_dir());
    let stage = stage.ok_or("there is no directory to mount at")?;
    let size = Some("size=64k,mode=755");
    // The mount namespace is ours and nobody else runs in it: nobody misses what is covered for a moment.
    mount(Some("byway"), stage, Some("tmpfs"), MsFlags::empty(), size)
        .map_err(|e| format!("mount a file system: {e}"))?;
    let cover = || -> io::Result<()> {
        let (ours, nobody) = (stage.join("resolv.conf"), stage.join("nobody"));
        fs::write(&ours, text)?;
        fs::write(&nobody, "")?;
        bind(&ours, &file)?;
        sockets
            .iter()
            .flatten()
            .try_for_each(|socket| bind(&nobody, socket))
    };
    let covered = cover().map_err(|e| e.to_string());
    // What is mounted from it stays.
    let uncovered = umount2(stage, MntFlags::MNT_DETACH).map_err(|e| e.to_string());
    covered.and(uncovered)
}

/// Holds the file at a path, wherever symbolic links lead, without opening it.
fn place(path: &str) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH).open(path)
}

/// Has programs find `from` where `at` is.
fn bind(from: &Path, at: &fs::File) -> io::Result<()> {
    let at = format!("/proc/self/fd/{}", at.as_raw_fd());
    let none = None::<&str>;
    mount(Some(from), at.as_str(), none, MsFlags::MS_BIND, none).map_err(Into::into)
}
