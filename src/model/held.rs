//! How records of a subnet are held: by key in maps that copies share, each with its digest in one index.

use std::sync::Arc;

use super::chunks::Chunks;
use super::id::PeerId;
use super::record::{Digest, Statement, Verified};
use super::subnet::Absorbed;

/// By a member and who spoke about it.
pub(super) type ByPair<T> = Chunks<(PeerId, PeerId), Arc<Statement<T>>>;

/// Stands for what is in a set of records: copies bear the same one until something changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Mark(Arc<()>);

impl Mark {
    /// Whether both sets are the same for sure.
    pub(super) fn is_same(&self, other: &Mark) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// It is no part of what is compared.
impl PartialEq for Mark {
    fn eq(&self, _: &Mark) -> bool {
        true
    }
}

impl Eq for Mark {}

/// What is held about one member, with who said it.
pub(super) fn about<T>(map: &ByPair<T>, member: PeerId) -> impl Iterator<Item = (PeerId, &Arc<Statement<T>>)> {
    let first = (member, PeerId([0; 32]));
    let all = map.from(&first).take_while(move |((about, _), _)| *about == member);
    all.map(|((_, by), held)| (*by, held))
}

/// Enters a record under its key where it is the greatest. Of more than `most` of one issuer those with the smallest
/// keys stay, so that the same are left at everybody.
pub(super) fn enter<T, R: Ord>(
    map: &mut ByPair<T>,
    index: &mut Chunks<Digest, ()>,
    most: usize,
    key: (PeerId, PeerId),
    statement: Arc<Statement<T>>,
    rank: impl Fn(&Statement<T>) -> R,
) -> Absorbed {
    if map.get(&key).is_some_and(|old| rank(old) >= rank(&statement)) {
        return Absorbed::Known;
    }
    let digest = statement.digest;
    index.insert(digest, ());
    if let Some(old) = map.insert(key, statement) {
        index.remove(&old.digest);
        return Absorbed::New;
    }
    if map.len() > most {
        let surplus: Vec<_> = map.keys().filter(|(_, by)| *by == key.1).skip(most).copied().collect();
        for key in surplus {
            if let Some(old) = map.remove(&key) {
                index.remove(&old.digest);
            }
        }
    }
    if index.contains_key(&digest) { Absorbed::New } else { Absorbed::Known }
}

/// Drops what is held about one member.
pub(super) fn drop_about<T>(map: &mut ByPair<T>, index: &mut Chunks<Digest, ()>, member: PeerId) {
    let issuers: Vec<PeerId> = about(map, member).map(|(by, _)| by).collect();
    for by in issuers {
        if let Some(old) = map.remove(&(member, by)) {
            index.remove(&old.digest);
        }
    }
}

/// Keeps what `stays` says yes to, in the index as well.
pub(super) fn keep<T>(
    map: &mut ByPair<T>,
    index: &mut Chunks<Digest, ()>,
    stays: impl Fn(&(PeerId, PeerId), &T) -> bool,
) {
    map.retain(|key, held| stays(key, &held.body) || index.remove(&held.digest).is_none());
}

/// What of `old` is not in `new` any more, and what came.
pub(super) fn moved<K: Ord, T>(
    old: &Chunks<K, Arc<Statement<T>>>,
    new: &Chunks<K, Arc<Statement<T>>>,
    went: &mut Vec<Digest>,
    came: &mut Vec<Verified>,
) where
    Verified: From<Arc<Statement<T>>>,
{
    for (_, old, new) in old.differences(new, |a, b| a.digest == b.digest) {
        went.extend(old.map(|held| held.digest));
        came.extend(new.map(|held| Verified::from(Arc::clone(held))));
    }
}
