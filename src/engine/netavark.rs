//! The netavark plugin of Podman: this program, called by the name `byway` in a directory `netavark`.
//!
//! It speaks version 1.0.0 of netavark's plugin API, which netavark 1.6 to 2.x and Podman 4.5 to 6 have: the verb is the
//! first argument, a JSON object on standard input says what it is about, the answer goes to standard output. An error is
//! `{"error": TEXT}` there, with exit code 1. It keeps no state: what is attached the daemon knows, by container ID and
//! interface.
//!
//! | verb | input | what it does |
//! |---|---|---|
//! | `info` | none | tells the versions |
//! | `create` | a network | checks its options, and completes it: `podman network create -d byway -o subnet=lab NAME` |
//! | `setup NETNS` | a container and a network | attaches the container; a second time it tells the same |
//! | `teardown NETNS` | the same | detaches it; what is not there is no error |
//!
//! | option of a network | what it means |
//! |---|---|
//! | `subnet` | the subnet, by name or ID; needed |
//! | `socket` | control socket of the daemon; without it `BYWAY_SOCKET`, `/run/byway/byway.sock`, or the user's own |
//!
//! Any other option is refused, as is what the subnet decides: addresses, gateways, routes and names of links. The answer
//! to `create` has the pools of the subnet and the IPAM driver `none`. With Podman's own driver Podman would pick the
//! addresses of containers itself, which other members may have leased.
//!
//! `setup` gives a container the addresses (`--ip`, `--ip6`), the hardware address (`--mac-address`), the further names
//! (`--network-alias`) and the ports (`-p`) that are asked for: netavark maps no ports for the network of a plugin. The
//! daemon's resolver goes into the container's `resolv.conf`, so aardvark-dns has nothing to do (`dns_enabled` is false).
//!
//! Podman without root runs plugins in a user namespace: see `rootless.rs`.

mod network;
mod rootless;
mod status;
#[cfg(test)]
mod tests;
mod verbs;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use super::program;
use crate::api::types::{Error, ErrorKind};

/// Name of the program in the directory of plugins, which is the name of the driver.
pub const NAME: &str = "byway";
/// Name of the directory by which this program knows that it is called as a plugin.
pub const DIR: &str = "netavark";
/// Version of netavark's plugin API that is spoken.
const API: &str = "1.0.0";

/// Why a verb failed: one line, with the daemon's code where the daemon said it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure(String);

impl Failure {
    fn new(message: impl Into<String>) -> Failure {
        Failure(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        // What stands behind several spaces explains the command.
        let hint = match error.kind {
            ErrorKind::NoDaemon if rootless::is_rootless() => rootless::START,
            _ => error.hint.split("      ").next().unwrap_or_default(),
        };
        Failure(match hint {
            "" => error.to_string(),
            hint => format!("{error}; try: {hint}"),
        })
    }
}

/// Whether a program that was called so is the plugin: `byway` in a directory called `netavark`.
pub fn is_called(program: &OsStr) -> bool {
    let path = Path::new(program);
    let named = |part: Option<&OsStr>, name: &str| part.is_some_and(|part| part == name);
    named(path.file_name(), NAME) && named(path.parent().and_then(Path::file_name), DIR)
}

/// Carries out the call that the arguments and standard input describe, and prints what comes of it; the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().skip(1).collect();
    let texts: Option<Vec<&str>> = arguments.iter().map(|a| a.to_str()).collect();
    let outcome = match texts {
        Some(texts) => perform(&texts),
        None => Err(Failure::new("an argument is no UTF-8")),
    };
    match outcome {
        Ok(None) => 0,
        Ok(Some(answer)) => u8::from(!program::print(&answer)),
        Err(failure) => {
            program::print(&json!({"error": failure.to_string()}));
            1
        }
    }
}

/// Does what is asked for; what there is to print.
fn perform(arguments: &[&str]) -> Result<Option<Value>, Failure> {
    match arguments {
        [] | ["info"] => Ok(Some(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "api_version": API,
        }))),
        ["create"] => asked(|input| async move { verbs::create(&input).await.map(Some) }),
        ["setup", netns] => {
            asked(|input| async move { verbs::setup(netns, &input).await.map(Some) })
        }
        ["teardown", netns] => {
            asked(|input| async move { verbs::teardown(netns, &input).await.map(|()| None) })
        }
        ["setup" | "teardown"] => Err(Failure::new("the path of the namespace is missing")),
        [verb, ..] => {
            let shown: String = verb.chars().take(40).collect();
            let message = format!(
                "{shown:?} is no call of netavark's: create, setup NETNS, teardown NETNS, info"
            );
            Err(Failure::new(message))
        }
    }
}

/// Reads the input and does what it asks for.
fn asked<F>(act: impl FnOnce(Vec<u8>) -> F) -> Result<Option<Value>, Failure>
where
    F: Future<Output = Result<Option<Value>, Failure>>,
{
    let input =
        program::input().map_err(|error| Failure::new(format!("read standard input: {error}")))?;
    let runtime =
        program::runtime().map_err(|error| Failure::new(format!("start the runtime: {error}")))?;
    runtime.block_on(act(input))
}
