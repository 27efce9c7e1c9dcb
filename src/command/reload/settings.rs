//! The configuration in force, and what stands over what the files say.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::plan::{Meant, Unfinished};
use crate::api::server;
use crate::config::word::RelayWord;
use crate::config::{Config, DeclaredSubnet, RelayConfig, contents};
use crate::model::id::SubnetId;
use crate::model::join::{Invite, unwrapped};
use crate::report::metrics;

/// The configuration in force. Clones are one.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(super) config: Arc<watch::Sender<Arc<Config>>>,
    pub(super) api_clients: Arc<AtomicUsize>,
    /// Users who may attach what is their own.
    pub(crate) users: server::Users,
    pub(super) metrics: mpsc::Sender<metrics::Move>,
    /// When the files are looked at again, to leave what is declared no more.
    pub(super) again: Arc<watch::Sender<Option<Instant>>>,
    /// One reading at a time, with what the former ones could not do.
    pub(super) unfinished: Arc<tokio::sync::Mutex<Unfinished>>,
    /// What each invite that could be read was for: its file may be gone once it has served.
    invites: Arc<Mutex<BTreeMap<PathBuf, SubnetId>>>,
    relaying: Arc<Mutex<Relaying>>,
    /// Held from a look at what is in force to its replacement.
    changing: Arc<tokio::sync::Mutex<()>>,
}

/// What is said of relaying, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relaying {
    /// What flags, environment and files say.
    pub written: RelayConfig,
    /// Where they say it, by the key.
    origins: BTreeMap<&'static str, String>,
    /// What the command line said since.
    pub word: Option<RelayWord>,
}

/// Whether that is a key about relaying for others.
fn is_relays(key: &str) -> bool {
    key.starts_with("transport.relay.")
}

impl Relaying {
    /// Puts the word of the command line in force over a configuration as it was read, as far as it still counts.
    pub fn over(config: &mut Config, word: Option<RelayWord>) -> Relaying {
        let written = config.relay.clone();
        let origins = config.origins.iter().filter(|(key, _)| is_relays(key));
        let origins = origins.map(|(key, place)| (*key, place.clone())).collect();
        let word = word.filter(|word| word.apply(config));
        Relaying {
            written,
            origins,
            word,
        }
    }

    /// Takes the word out of a configuration where it is in force.
    pub fn undo(&self, config: &mut Config) {
        config.relay = self.written.clone();
        config.origins.retain(|key, _| !is_relays(key));
        config.origins.extend(self.origins.clone());
    }
}

impl Settings {
    /// The settings of a daemon that starts with a configuration as it was read, and the word of the command line that
    /// its state directory keeps.
    pub(crate) fn new(
        mut config: Config,
        word: Option<RelayWord>,
    ) -> (Settings, mpsc::Receiver<metrics::Move>) {
        let relaying = Arc::new(Mutex::new(Relaying::over(&mut config, word)));
        let api_clients = Arc::new(AtomicUsize::new(clients(&config)));
        let users = server::Users::default();
        users.set(&config.workload_users);
        let (metrics, moves) = mpsc::channel(1);
        let config = Arc::new(watch::Sender::new(Arc::new(config)));
        (
            Settings {
                config,
                api_clients,
                users,
                metrics,
                again: Arc::default(),
                unfinished: Arc::default(),
                invites: Arc::default(),
                relaying,
                changing: Arc::default(),
            },
            moves,
        )
    }

    /// The configuration that is in force now.
    pub(crate) fn now(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Waits for the right to put another configuration in force.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost.
    pub(in crate::command) async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Puts another configuration in force.
    pub(in crate::command) fn replace(&self, config: Arc<Config>) {
        self.config.send_replace(config);
    }

    /// What is said of relaying.
    pub(in crate::command) fn relaying(&self) -> Relaying {
        self.relaying.lock().clone()
    }

    /// Remembers what is said of relaying.
    pub(in crate::command) fn relays(&self, relaying: Relaying) {
        *self.relaying.lock() = relaying;
    }

    /// A receiver of the configuration in force, for who follows it.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// The subnet of a declaration.
    pub(super) fn meant(&self, table: &DeclaredSubnet) -> Option<SubnetId> {
        let Some(file) = &table.invite_file else {
            return table.id;
        };
        let read = contents(file)
            .ok()
            .and_then(|text| Invite::parse(&unwrapped(&text)).ok());
        let mut invites = self.invites.lock();
        if let Some(invite) = read {
            invites.insert(file.clone(), invite.subnet);
        }
        table.id.or_else(|| invites.get(file).copied())
    }

    pub(super) fn all_meant(&self, tables: &[DeclaredSubnet]) -> Vec<Meant> {
        tables
            .iter()
            .map(|table| Meant {
                id: self.meant(table),
                table: table.clone(),
            })
            .collect()
    }

    /// Waits until it is time for [`leave_waiting`](super::leave_waiting). Each reading says when.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost.
    pub(crate) async fn second_reading(&self) {
        let mut again = self.again.subscribe();
        loop {
            let next = *again.borrow_and_update();
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => return,
                _ = again.changed() => {}
            }
        }
    }

    /// How many clients the control socket takes.
    pub(crate) fn api_clients(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.api_clients)
    }
}

/// How many clients the control socket takes by a configuration.
pub(super) fn clients(config: &Config) -> usize {
    usize::try_from(config.limits.api_clients).unwrap_or(server::MAX_CLIENTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RelayOffer;

    /// `relay offer --max-mbit 5`, then `relay off`: nobody is told to take out of a file what only the command said.
    #[test]
    fn a_later_word_leaves_nothing_of_the_former_one() {
        let mut config = Config::defaults("a");
        let first = RelayWord::new(RelayOffer::Always, Some(5), &config.relay);
        let relaying = Relaying::over(&mut config, Some(first));
        assert_eq!(config.relay.max_mbit, 5);
        relaying.undo(&mut config);
        assert_eq!(config, Config::defaults("a"));
        let second = RelayWord::new(RelayOffer::Never, None, &relaying.written);
        Relaying::over(&mut config, Some(second));
        assert_eq!(config.idle(), []);
        // What a file says is idle then, as it is where no word was given before.
        let mut file = Config::defaults("a");
        let key = "transport.relay.max_mbit";
        file.origins.insert(key, "byway.toml:2".into());
        let first = RelayWord::new(RelayOffer::Always, Some(5), &file.relay);
        let relaying = Relaying::over(&mut file, Some(first));
        relaying.undo(&mut file);
        let second = RelayWord::new(RelayOffer::Never, None, &relaying.written);
        Relaying::over(&mut file, Some(second));
        assert_eq!(file.idle()[0].place, "byway.toml:2");
    }
}
