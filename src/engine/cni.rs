//! The CNI plugin: `byway` called by the name `byway-cni` by a container runtime.
//!
//! It speaks versions 0.3.1 to 1.1.0 of the [specification](https://www.cni.dev/docs/spec/): the command and the container come
//! by the environment, the configuration on standard input, the result or the error goes to standard output, and the exit code
//! is 0 or 1. It keeps no state: what is attached the daemon knows, by container ID and interface.
//!
//! | key of the configuration | what it means |
//! |---|---|
//! | `type` | `byway-cni`, the name of the file that is run |
//! | `subnet` | the subnet, by name or ID; needed |
//! | `socket` | control socket of the daemon; `BYWAY_SOCKET` or the default without it |
//! | `interface` | name of the interface in the container, where it is not the runtime's: needed behind a plugin that makes that one |
//! | `ipam` | to be left out: addresses are the subnet's, and another plugin or a range of its own is refused |
//! | `dns` | what the result says in place of our gateway and the subnet's domain |
//! | `capabilities` | `portMappings`, `ips`, `mac`, `aliases`, `dns`; any other that the runtime fills in is refused |
//!
//! `bandwidth` is the plugin of that name's, behind this one: it limits the host's end of the veth pair, which the result names.
//! The plugin `portmap` behind this one needs a machine that forwards (`ip_forward`), which `portMappings` of our own does not.
//! `CHECK` of `portmap` 1.1 fails for a container with addresses of both families, and that of `bridge` 1.1 where another plugin
//! adds an address: such a list needs `disableCheck`.
//! A workload is called as `K8S_POD_NAME` of `CNI_ARGS` says, else as its container's ID up to the first dot, or by 12 digits of
//! an ID that is a random number; and numbered where that name is taken.
//!
//! Codes of errors are those of the specification; 100 and more are the daemon's: 100 and the exit code that `byway` has for it.

mod config;
mod environment;
mod failure;
mod result;
#[cfg(test)]
mod tests;
mod verbs;

use std::ffi::OsStr;
use std::path::Path;

use config::{Config, VERSIONS};
use environment::Environment;
use failure::{DECODE, ENVIRONMENT, Failure, IO};
use serde_json::{Value, json};
use verbs::Call;

use super::program;

/// The name by which this program is a CNI plugin.
pub const NAME: &str = "byway-cni";

/// Whether a program that was called so is the plugin.
pub fn is_called(program: &OsStr) -> bool {
    Path::new(program)
        .file_name()
        .is_some_and(|name| name == NAME)
}

/// Carries out the call that the environment and standard input describe, and prints what comes of it; the exit code.
pub fn run() -> u8 {
    let environment = Environment::of(std::env::vars_os());
    if environment.command().is_empty() {
        // A person who tries it out; for a runtime it is an error as every other.
        eprintln!(
            "{NAME} is run by a container runtime (CNI {}), see byway integration --help",
            VERSIONS.join(", ")
        );
    }
    let input = program::input()
        .map_err(|error| Failure::new(IO, format!("read the configuration: {error}")));
    let version = input
        .as_ref()
        .ok()
        .and_then(|bytes| config::version_of(bytes));
    let outcome = input.and_then(|bytes| perform(&environment, &bytes));
    let spoken = version.filter(|v| VERSIONS.contains(&v.as_str()));
    let newest = VERSIONS.last().copied().unwrap_or_default();
    match outcome {
        Ok(None) => 0,
        Ok(Some(result)) => u8::from(!program::print(&result)),
        Err(failure) => {
            program::print(&failure.json(spoken.as_deref().unwrap_or(newest)));
            1
        }
    }
}

/// Does what is asked for; what there is to print.
fn perform(environment: &Environment, input: &[u8]) -> Result<Option<Value>, Failure> {
    let command = environment.command();
    match command {
        "VERSION" => return versions(input).map(Some),
        "ADD" | "DEL" | "CHECK" | "GC" | "STATUS" => {}
        "" => return Err(Failure::new(ENVIRONMENT, "CNI_COMMAND is missing")),
        other => {
            let shown: String = other.chars().take(40).collect();
            let message = format!("CNI_COMMAND is {shown:?}, which is no command");
            return Err(Failure::new(ENVIRONMENT, message));
        }
    }
    let of_container = match command {
        "ADD" | "CHECK" => Some(environment.attachment(true)?),
        "DEL" => Some(environment.attachment(false)?),
        _ => None,
    };
    let call = Call::new(Config::parse(input)?);
    let runtime = program::runtime()
        .map_err(|error| Failure::new(IO, format!("start the runtime: {error}")))?;
    runtime.block_on(async {
        match (command, &of_container) {
            ("ADD", Some(of)) => call.add(of).await.map(Some),
            ("DEL", Some(of)) => call.del(of).await.map(|()| None),
            ("CHECK", Some(of)) => call.check(of).await.map(|()| None),
            ("GC", _) => call.gc().await.map(|()| None),
            _ => call.status().await.map(|()| None),
        }
    })
}

/// `VERSION`: it is told in the version that was asked in, whichever that is.
fn versions(input: &[u8]) -> Result<Value, Failure> {
    let asked = config::version_of(input).ok_or_else(|| {
        Failure::new(DECODE, "standard input is no JSON object with a cniVersion")
    })?;
    let asked: String = asked.chars().take(40).collect();
    Ok(json!({"cniVersion": asked, "supportedVersions": VERSIONS}))
}
