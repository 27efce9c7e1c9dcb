//! The verbs that change something, each decided on a copy and committed whole.

mod additions;
mod followed;
mod health;
mod import;
mod invites;
mod leases;
mod maps;
mod members;
mod names;
mod networks;
mod own;
mod runner;
mod subnets;
mod told;
mod workloads;

pub use additions::Addition;
pub use followed::{Pursued, Seen};
pub use health::Examined;
pub(in crate::node) use health::Proven;
pub use import::{Former, Made, NewImport};
pub use maps::{NewMap, prepare_map};
pub use networks::{ContainerNames, Named, NewEndpoint, Staged, Underlying};
pub use own::Own;
pub use runner::Runner;
pub use subnets::Leaving;
pub(in crate::node) use told::Engines;
pub use told::{Asker, Container, Silent, warning};
pub use workloads::{Beside, NewWorkload};

use super::Core;
use crate::api::types::{Done, Error, ErrorKind, Response};
use crate::model::error::Code;
use crate::model::members::Subnet;
use crate::model::state::Draft;

fn done(message: impl Into<String>, changed: bool) -> Response {
    Response::Done(Done {
        message: message.into(),
        changed,
    })
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| {
        Error::new(
            ErrorKind::Failed,
            Code::Random,
            format!("read randomness: {e}"),
        )
    })?;
    Ok(bytes)
}

impl Core {
    fn save(&mut self, subnet: Subnet) -> Result<u64, Error> {
        let mut draft = Draft::default();
        draft.put(subnet);
        self.commit(draft)
    }
}
