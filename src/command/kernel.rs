//! The kernel follows what a command has decided, or refuses it. A command fails by what it asked for alone: what else the
//! kernel refuses is a problem of `status`, and nobody else's command fails for it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Commands;
use crate::api::types::{Error, ErrorKind, Response};
use crate::host::{Applied, Failure};
use crate::model::error::Code;
use crate::model::host::Part;
use crate::model::id::{Name, SubnetId};
use crate::node::{Addition, Effect};

/// How long a command waits for the kernel to follow.
const KERNEL_PATIENCE: Duration = Duration::from_secs(8);
/// Between two tries to take back what could not be taken back at once.
const UNDO_INTERVAL: Duration = Duration::from_secs(1);

/// The parts of the desired state that a command fails by. The default is none: what is only recorded stands, and the
/// kernel follows it when it can.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts(BTreeSet<Part>);

impl Parts {
    /// The links of these subnets.
    pub(super) fn of_subnets(ids: impl IntoIterator<Item = SubnetId>) -> Parts {
        let subnets = ids.into_iter().map(Part::Subnet);
        Parts(subnets.chain([Part::Machine]).collect())
    }

    /// What is no longer wanted.
    pub(super) fn closed() -> Parts {
        Parts([Part::Machine, Part::Former].into())
    }

    /// Port maps, and the links of the subnets they are in.
    pub(super) fn of_maps(maps: Vec<(SubnetId, Name)>) -> Parts {
        let mut parts = Parts::of_subnets(maps.iter().map(|(subnet, _)| *subnet));
        let each = maps
            .into_iter()
            .map(|(subnet, name)| Part::Map(subnet, name));
        parts.0.extend(each);
        parts
    }

    fn added(addition: &Addition) -> Parts {
        let mut parts = Parts::of_subnets([addition.subnet()]);
        parts.0.extend(addition.part());
        parts
    }

    /// Which of the failures are theirs.
    fn refused<'a>(&self, applied: &'a Applied) -> Vec<&'a Failure> {
        let theirs = |failure: &&Failure| !failure.of.is_disjoint(&self.0);
        applied.failures.iter().filter(theirs).collect()
    }
}

/// The links of a subnet, or of every one.
pub(super) async fn links(ctx: &Commands, subnet: Option<&str>) -> Parts {
    match subnet {
        // What is not found, the command itself says.
        Some(text) => Parts::of_subnets(ctx.node.find(text.to_owned()).await),
        None => Parts::of_subnets(ctx.node.view().load().rolls.keys().copied()),
    }
}

/// The answer of a command that stands whatever the kernel makes of it, once that has followed.
pub(super) async fn settled<T>(
    ctx: &Commands,
    parts: Parts,
    command: impl Future<Output = Result<Effect<T>, Error>>,
) -> Result<T, Error> {
    let Effect { answer, generation } = command.await?;
    stands(ctx, generation, &parts).await?;
    Ok(answer)
}

/// The same for what the others hear of: it asks nothing of the kernel of this machine that it could fail by.
pub(super) async fn recorded(
    ctx: &Commands,
    command: impl Future<Output = Result<Effect<Response>, Error>>,
) -> Result<Response, Error> {
    settled(ctx, Parts::default(), command).await
}

/// Waits for the kernel where what was decided stands whatever comes of it: an error says so.
pub(super) async fn stands(ctx: &Commands, generation: u64, parts: &Parts) -> Result<(), Error> {
    let Err(error) = settle(ctx, generation, parts).await else {
        return Ok(());
    };
    match error.code {
        _ if error.code != Code::Kernel && error.code != Code::KernelSlow => Err(error),
        // Nothing was asked of the kernel.
        _ if parts.0.is_empty() => Ok(()),
        _ => Err(Error {
            message: format!(
                "{}; the change is saved, and it is tried again every few seconds",
                error.message
            ),
            ..error
        }),
    }
}

/// Waits until the kernel has taken an addition. What it refuses is taken back.
pub(super) async fn taken(ctx: &Commands, generation: u64, added: &Addition) -> Result<(), Error> {
    match settle(ctx, generation, &Parts::added(added)).await {
        Ok(()) => Ok(()),
        Err(error) => Err(undone(ctx, added.clone(), error).await),
    }
}

/// What a person is told of a subnet that the kernel refused, whether or not it could be taken back.
pub(super) fn without(id: SubnetId, error: Error, undone: Result<(), Error>) -> Error {
    let Err(why) = undone else { return error };
    Error {
        message: format!(
            "{}; it could not be taken back: {}",
            error.message, why.message
        ),
        hint: format!("byway leave {id}"),
        ..error
    }
}

/// Takes back an addition for `error`, which is what the person is told. Where that cannot be saved it is tried again while
/// the daemon runs, and its next start takes back what is left; but a namespace that a workload was given stays then.
pub(super) async fn undone(ctx: &Commands, added: Addition, error: Error) -> Error {
    if let Err(why) = ctx.node.undo(added.clone()).await {
        tracing::warn!(error = %why, "what failed is not taken back");
        if !added.is_marked() {
            return error;
        }
        let node = ctx.node.clone();
        ctx.mesh.spawn(async move {
            loop {
                tokio::time::sleep(UNDO_INTERVAL).await;
                // What was confirmed or added anew meanwhile stays.
                if node.undo(added.clone()).await.is_ok() {
                    return;
                }
            }
        });
    }
    error
}

/// Waits until the kernel matches a generation of the View, as far as these parts of it go.
///
/// # Errors
/// `E-KERNEL` by a failure of one of the parts; `E-KERNEL-SLOW`, `E-STOPPING`.
pub(super) async fn settle(ctx: &Commands, generation: u64, parts: &Parts) -> Result<(), Error> {
    let mut applied = ctx.applied.clone();
    let reached = tokio::time::timeout(
        KERNEL_PATIENCE,
        applied.wait_for(|a| a.generation >= generation),
    )
    .await;
    let refused: Vec<String> = match reached {
        Ok(Ok(applied)) => parts
            .refused(&applied)
            .iter()
            .map(|f| format!("{}: {}", f.what, f.why))
            .collect(),
        Ok(Err(_)) => {
            let stopping = "the daemon is stopping";
            return Err(Error::new(ErrorKind::Failed, Code::Stopping, stopping));
        }
        Err(_) => {
            let message = format!(
                "the kernel did not follow within {} s",
                KERNEL_PATIENCE.as_secs()
            );
            return Err(
                Error::new(ErrorKind::Timeout, Code::KernelSlow, message).hint("byway status")
            );
        }
    };
    if refused.is_empty() {
        return Ok(());
    }
    let message = format!("the kernel refused: {}", refused.join("; "));
    Err(Error::new(ErrorKind::Failed, Code::Kernel, message).hint("byway status"))
}
