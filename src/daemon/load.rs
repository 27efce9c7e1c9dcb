//! Reads keys and records, before anything outside the state directory is touched.

use std::path::Path;

use zeroize::Zeroizing;

use crate::api::types::{Error, ErrorKind};
use crate::config::Config;
use crate::model::error::Code;
use crate::model::members::Identity;
use crate::model::state::{Damage, State};
use crate::store::{self, Store};

/// Name of the file with the key of datagram sessions.
const DATA_KEY_FILE: &str = "data.key";

/// Name of the file with the key that opens what is sealed for this node alone.
const SEAL_KEY_FILE: &str = "seal.key";

/// Secrets of the network.
pub(super) struct Keys {
    /// Of the identity: libp2p's.
    pub seed: [u8; 32],
    /// Of datagram sessions.
    pub data: Zeroizing<[u8; 32]>,
}

/// What a daemon begins with.
pub(super) struct Loaded {
    pub identity: Identity,
    pub keys: Keys,
    pub state: State,
    pub damage: Vec<Damage>,
    pub store: Store,
}

/// Reads keys and records. Nothing outside the state directory is touched.
pub(super) fn load(config: &Config) -> Result<Loaded, Error> {
    let on_store = |e: store::StoreError| {
        if e.is_forbidden() {
            return Error::new(ErrorKind::NotPermitted, Code::Permission, e.to_string())
                .hint("byway daemon --state-dir DIR --socket PATH      (directories of its own, or run it as root)");
        }
        let kind = if e.is_conflict() {
            ErrorKind::Conflict
        } else {
            ErrorKind::Failed
        };
        Error::new(kind, e.code(), e.to_string()).hint(e.hint())
    };
    let dir: &Path = &config.state_dir;
    // Keys before state: killed in between, the next start finds keys without a state and goes on.
    let keyed = [store::IDENTITY_FILE, DATA_KEY_FILE, SEAL_KEY_FILE]
        .iter()
        .all(|name| dir.join(name).exists());
    let exists = keyed || store::holds_something(dir);
    let seed = store::identity(dir, config.identity_file.as_deref(), exists).map_err(on_store)?;
    let data_secret = store::secret(dir, DATA_KEY_FILE, exists).map_err(on_store)?;
    // Nothing is sealed yet: only its public half leaves this function, in this node's grants.
    let seal_secret = store::secret(dir, SEAL_KEY_FILE, exists).map_err(on_store)?;
    let store = Store::open(dir).map_err(on_store)?;
    let saved = store.load().map_err(on_store)?;
    let public = |secret: [u8; 32]| {
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret)).to_bytes()
    };
    let mut identity = Identity::new(&seed, public(*data_secret), public(*seal_secret));
    identity.life =
        getrandom::u64().map_err(|e| Error::new(ErrorKind::Failed, Code::Random, e.to_string()))?;
    let seed = *seed;
    let (state, damage) = State::load(identity.clone(), saved.records);
    for item in &damage {
        tracing::warn!(what = %item.what, why = %item.why, "left out of the saved state; it is fetched from the other members");
    }
    Ok(Loaded {
        identity,
        keys: Keys {
            seed,
            data: data_secret,
        },
        state,
        damage,
        store,
    })
}
