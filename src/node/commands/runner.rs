//! Who can run a command in a workload: the engine of its container, and nobody else.

use std::path::PathBuf;

use crate::api::types::Error;
use crate::model::id::Name;
use crate::model::members::Subnet;
use crate::model::workload::{Target, Workload};
use crate::node::Core;

/// The plugin by which Podman attaches its containers.
const NETAVARK: &str = "netavark";

/// Who can run a command in a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runner {
    /// An engine, in that container of it.
    Container {
        /// Socket of the engine; none where it is Podman's usual one.
        engine: Option<PathBuf>,
        /// The engine's ID of the container.
        id: String,
    },
    /// Nobody yet: its engine has not told which container it is.
    Untold,
    /// Nobody: why not, in words.
    Nobody(&'static str),
}

impl Core {
    /// Who can run a command in a workload of this machine.
    pub(in crate::node) fn runner(&self, subnet: &Subnet, workload: &Workload) -> Runner {
        let at = |engine: Option<PathBuf>, id: &str| Runner::Container {
            engine,
            id: id.to_owned(),
        };
        match &workload.target {
            Target::Docker { id, .. } | Target::Podman { id, .. } => {
                let followed = subnet.followed(&workload.name);
                match followed.and_then(|f| f.engine.clone()) {
                    Some(engine) => at(Some(engine), id),
                    None => Runner::Untold,
                }
            }
            Target::Engine { .. } if workload.target.moves_links() => {
                match (&self.engines.plugin, self.container_of(workload)) {
                    (Some(engine), Some(container)) => at(Some(engine.clone()), &container.id),
                    _ => Runner::Untold,
                }
            }
            Target::Engine { engine, container } if engine.as_str() == NETAVARK => {
                at(None, container)
            }
            _ if workload.target.program().is_some() => {
                Runner::Nobody("it is a program, beside which nobody runs another")
            }
            Target::Engine { .. } => {
                Runner::Nobody("a CNI runtime has no way to run a command in its container")
            }
            Target::OfUser { .. } => Runner::Nobody(
                "its engine is a user's own, and this daemon asks none but the machine's",
            ),
            Target::Netns(_) => Runner::Nobody(
                "it is a network namespace, which has no user whose rights a command could have",
            ),
            Target::Tap { .. } => Runner::Nobody(
                "it is a virtual machine, which this machine cannot run a command in",
            ),
        }
    }

    /// The same of one that is named.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`, `E-AMBIGUOUS`, `E-NO-SUBNET`.
    pub fn runner_of(&self, workload: &str, subnet: Option<&str>) -> Result<(Name, Runner), Error> {
        let (id, name) = self.find_workload(workload, subnet, None)?;
        let subnet = self.state.find(&id.to_string())?;
        let mut here = subnet.local.workloads.iter();
        let runner = here
            .find(|w| w.name == name)
            .map_or(Runner::Untold, |w| self.runner(subnet, w));
        Ok((name, runner))
    }
}
