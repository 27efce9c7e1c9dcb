//! What is kept of Docker across restarts: `docker.json` of the state directory.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;
use crate::model::id::SubnetId;
use crate::store::{self, StoreError};

/// Name of the file.
const FILE: &str = "docker.json";

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Whether the plugin is to be served.
    pub installed: bool,
    /// The engine's socket, where it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The engine's networks, by their ID.
    #[serde(default)]
    pub networks: BTreeMap<String, Network>,
}

/// A network of the engine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// ID of the subnet that it is over.
    pub subnet: String,
    /// Whether its containers have addresses of IPv6 as well.
    pub ipv6: bool,
}

impl Network {
    /// The subnet that it is over.
    pub fn subnet(&self) -> Option<SubnetId> {
        self.subnet.parse().ok()
    }
}

impl Kept {
    /// Reads the file; where there is none nothing is kept.
    pub fn read(dir: &Path) -> Result<Kept, Error> {
        let Some(bytes) = store::kept(dir, FILE).map_err(|e| failed(&e))? else {
            return Ok(Kept::default());
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let message = format!("{}: {error}", dir.join(FILE).display());
            Error::new(ErrorKind::Failed, Code::StateDamaged, message)
        })
    }

    /// Writes the file, whole and synced; where nothing is kept it is removed.
    pub async fn write(&self, dir: &Path) -> Result<(), Error> {
        let bytes = if *self == Kept::default() {
            None
        } else {
            let bytes = serde_json::to_vec(self)
                .map_err(|error| Error::new(ErrorKind::Failed, Code::Failed, error.to_string()))?;
            Some(bytes)
        };
        let dir = dir.to_owned();
        let write = move || store::keep(&dir, FILE, bytes.as_deref());
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written.map_err(|e| failed(&e)),
            Err(e) => Err(Error::new(ErrorKind::Failed, Code::Failed, e.to_string())),
        }
    }
}

fn failed(error: &StoreError) -> Error {
    Error::new(ErrorKind::Failed, error.code(), error.to_string()).hint(error.hint())
}
