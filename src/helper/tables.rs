//! Docker's chain in the kernel's tables of before nftables. Those take a raw socket and root's own lock file, so a daemon
//! that is not root has the helper run their program, in the daemon's namespace.
//!
//! What can be asked is fixed here: whether the tables are used, how three chains look, and to have the rules of one daemon in
//! `DOCKER-USER` follow its links.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

use super::namespaces::is_netns;
use super::wire::{Error, Reply, Request};
use super::{ask, unexpected};
use crate::model::host::firewalls::{DOCKER_USER, chain_changes};
use crate::model::host::is_link_name;

/// The chains that may be looked at.
const CHAINS: [&str; 3] = [DOCKER_USER, "FORWARD", "INPUT"];
/// How the names of our links begin.
const OURS: &str = "bw";
/// Most links of one request.
const MAX_LINKS: usize = 256;
/// Bytes of a chain's rules that are passed on; more do not fit a packet.
const MAX_RULES: usize = 64 * 1024;
/// Characters of a complaint that are passed on.
const MAX_COMPLAINT: usize = 600;
/// Seconds to wait for others that change the tables: the daemon asks again soon.
const LOCK_TIMEOUT_S: &str = "1";
/// What the program says where there is no such chain.
const NO_CHAIN: &str = "No chain";

/// Carries out one of the requests about these tables, for the namespace in `own`.
///
/// # Errors
/// The reason it was not done.
pub(super) fn carry_out(request: Request, own: &OwnedFd) -> Result<Reply, Error> {
    Ok(match request {
        Request::AreTablesUsed { ipv6 } => Reply::Is(are_used(own, ipv6)?),
        Request::TableRules { ipv6, chain } => Reply::Rules(rules(own, ipv6, &chain)?),
        Request::LetThrough {
            ipv6,
            instance,
            links,
        } => {
            change(own, ipv6, &instance, &links)?;
            Reply::Done
        }
        _ => return Err(unexpected()),
    })
}

/// Whether anybody uses the tables of a family in the namespace in `own`. Only to list one would make it.
///
/// # Errors
/// When `own` is no network namespace or cannot be entered.
fn are_used(own: &OwnedFd, ipv6: bool) -> Result<bool, Error> {
    enter(own)?;
    let file = if ipv6 {
        "/proc/thread-self/net/ip6_tables_names"
    } else {
        "/proc/thread-self/net/ip_tables_names"
    };
    let names = std::fs::read_to_string(file);
    Ok(names.is_ok_and(|names| names.lines().any(|name| name == "filter")))
}

/// The rules of a chain as `iptables -S` prints them; none where there is no such chain.
///
/// # Errors
/// It is none of the chains that may be looked at, or the program fails.
fn rules(own: &OwnedFd, ipv6: bool, chain: &str) -> Result<Option<String>, Error> {
    if !CHAINS.contains(&chain) {
        return Err(Error::Refused("no chain that is looked at".to_owned()));
    }
    enter(own)?;
    match run(ipv6, "", &["-w", LOCK_TIMEOUT_S, "-S", chain], "") {
        Ok(listed) if listed.len() > MAX_RULES => {
            let why = format!("{chain} has more rules than can be read");
            Err(Error::Refused(why))
        }
        Ok(listed) => Ok(Some(listed)),
        Err(Error::Refused(why)) if why.contains(NO_CHAIN) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Has `DOCKER-USER` hold the rules of one daemon for these links and no others of it.
///
/// # Errors
/// A link is not ours, or the program fails; the rules are as before then.
fn change(
    own: &OwnedFd,
    ipv6: bool,
    instance: &str,
    links: &BTreeSet<String>,
) -> Result<(), Error> {
    let is_ours = |link: &String| {
        let plain = link.strip_suffix('+').unwrap_or(link);
        plain.starts_with(OURS) && is_link_name(plain)
    };
    let is_instance =
        (1..=32).contains(&instance.len()) && instance.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_instance || links.len() > MAX_LINKS || !links.iter().all(is_ours) {
        return Err(Error::Refused("no links of ours".to_owned()));
    }
    let Some(listed) = rules(own, ipv6, DOCKER_USER)? else {
        return Ok(());
    };
    match chain_changes(instance, DOCKER_USER, links, &listed) {
        Some(changes) => {
            let args = ["-w", LOCK_TIMEOUT_S, "--noflush"];
            run(ipv6, "-restore", &args, &changes).map(drop)
        }
        None => Ok(()),
    }
}

fn enter(own: &OwnedFd) -> Result<(), Error> {
    let path = Path::new("the daemon's own namespace");
    if !is_netns(own).unwrap_or(false) {
        return Err(Error::Missing(path.to_owned()));
    }
    setns(own, CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .map_err(Error::system("enter", path))
}

/// What the program for these tables says; what it complains of is the error.
fn run(ipv6: bool, suffix: &str, args: &[&str], input: &str) -> Result<String, Error> {
    let names = if ipv6 {
        ["ip6tables-legacy", "ip6tables"]
    } else {
        ["iptables-legacy", "iptables"]
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for name in names {
        match fed(&format!("{name}{suffix}"), args, input) {
            Ok(output) if output.status.success() => {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said: String = said.trim().chars().take(MAX_COMPLAINT).collect();
                return Err(Error::Refused(format!("{name}: {said}")));
            }
            Err(error) => last = error,
        }
    }
    let [program, _] = names;
    Err(Error::Refused(format!("run {program}: {last}")))
}

/// Runs a program with some input; it inherits the namespace that the calling thread is in.
fn fed(program: &str, args: &[&str], input: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads all before it answers. One that ended says why by its code.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

/// Asks with the file of the calling thread's namespace.
async fn ask_here(request: Request) -> Result<Reply, Error> {
    let path = Path::new("/proc/thread-self/ns/net");
    let own = File::open(path).map_err(Error::system("open", path))?;
    Ok(ask(request, vec![own.into()]).await?.0)
}

/// Whether anybody uses the tables of before nftables here.
///
/// # Errors
/// The namespace cannot be entered.
pub async fn are_tables_used(ipv6: bool) -> Result<bool, Error> {
    match ask_here(Request::AreTablesUsed { ipv6 }).await? {
        Reply::Is(used) => Ok(used),
        _ => Err(unexpected()),
    }
}

/// The rules of `FORWARD`, `INPUT` or `DOCKER-USER` in those tables; none where there is no such chain.
///
/// # Errors
/// The program for them fails.
pub async fn table_rules(ipv6: bool, chain: &str) -> Result<Option<String>, Error> {
    let chain = chain.to_owned();
    match ask_here(Request::TableRules { ipv6, chain }).await? {
        Reply::Rules(rules) => Ok(rules),
        _ => Err(unexpected()),
    }
}

/// Has `DOCKER-USER` of those tables hold the rules of a daemon for these links, and no others of it.
///
/// # Errors
/// The program for them fails.
pub async fn let_through(
    ipv6: bool,
    instance: &str,
    links: &BTreeSet<String>,
) -> Result<(), Error> {
    let request = Request::LetThrough {
        ipv6,
        instance: instance.to_owned(),
        links: links.clone(),
    };
    ask_here(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_links_and_known_chains_are_asked_for() {
        let own: OwnedFd = File::open("/proc/thread-self/ns/net").unwrap().into();
        let refused = |result: Result<(), Error>| matches!(result, Err(Error::Refused(_)));
        for chain in ["OUTPUT", "DOCKER", "-F", ""] {
            assert!(refused(rules(&own, false, chain).map(drop)), "{chain}");
        }
        let change = |instance: &str, link: &str| {
            change(&own, false, instance, &BTreeSet::from([link.to_owned()]))
        };
        for link in [
            "eth0",
            "docker0",
            "",
            "+",
            "bw x",
            "bw-lab\n-F",
            "bw-lab/",
            "-j",
        ] {
            assert!(refused(change("01234567", link)), "{link:?}");
        }
        for instance in ["", "x y", "0\nCOMMIT", &"0".repeat(33)] {
            assert!(refused(change(instance, "bw-lab")), "{instance:?}");
        }
        let file: OwnedFd = File::open("/proc/self/status").unwrap().into();
        let elsewhere = are_used(&file, false);
        assert!(matches!(elsewhere, Err(Error::Missing(_))), "{elsewhere:?}");
    }
}
