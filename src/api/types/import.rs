//! What a file says of workloads, as `import` asks for it and is answered.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::model::host::Proto;
use crate::model::id::Name;
use crate::model::import::of_line;
use crate::model::ports::PortRange;

/// A workload that a file describes. It need not be here yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportWorkload {
    /// Its name in the subnet.
    pub name: Name,
    /// The subnet: its ID, name or the beginning of the ID.
    pub subnet: String,
    /// What its engine calls its container, where it is one: by that name it is known once it is here.
    #[serde(default)]
    pub containers: Vec<String>,
    /// Addresses that it is to have, one of each family at most; the others are chosen.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Hardware address, as `02:00:00:00:00:01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Further names, in lower case.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Ports of this machine that lead to it.
    #[serde(default)]
    pub maps: Vec<ImportMap>,
    /// Whether it gets no address of IPv6 but those that are named.
    #[serde(default)]
    pub ipv4_only: bool,
    /// The line of the file that describes it, which refusals name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

impl ImportWorkload {
    /// Has a refusal name the line that is to blame.
    pub fn blamed(&self, error: Error) -> Error {
        Error {
            message: of_line(self.line, &error.message),
            ..error
        }
    }
}

/// A port map that a file describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportMap {
    /// The transport protocol.
    pub proto: Proto,
    /// The address of this machine; every address of both families where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<IpAddr>,
    /// The ports of this machine.
    pub ports: PortRange,
    /// As many ports of the workload.
    pub target_ports: PortRange,
    /// Whether Docker publishes the ports by itself while the workload is a container of its own on this machine. Then
    /// the map leaves them to Docker.
    #[serde(default)]
    pub by_engine: bool,
}

/// The answer to `import` and its rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Path of the file.
    pub source: String,
    /// Whether anything is another now.
    pub changed: bool,
    /// What this machine has by that file now.
    pub workloads: Vec<ImportedWorkload>,
    /// Names of workloads and maps that it had by the file before, and has no more.
    pub removed: Vec<String>,
}

/// A workload that was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedWorkload {
    /// Its name.
    pub workload: Name,
    /// Name of its subnet on this machine.
    pub subnet: Name,
    /// The addresses that are kept for it.
    pub addresses: Vec<IpAddr>,
    /// Further names that it gets when it comes.
    pub aliases: Vec<String>,
    /// Its port maps, as `tcp 0.0.0.0:8080`.
    pub maps: Vec<String>,
    /// Whether a workload of that name is attached here now.
    #[serde(default)]
    pub here: bool,
}

/// A file that was imported, as `import ls` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportInfo {
    /// Path of the file, which need not be there any more.
    pub source: String,
    /// Whether its last import can be rolled back.
    pub rollback: bool,
    /// What this machine has by it; nothing where all of it was taken away.
    pub workloads: Vec<ImportedWorkload>,
}
