//! An ordered map whose copies share what they have in common.
//!
//! A copy costs one pointer. The first change to it copies one pointer for every few dozen entries, and each change one
//! chunk. Two maps of one descent are compared by looking only into chunks that they do not share. What is kept of every member of a large subnet is kept in
//! such maps, so that a change costs in proportion to what changed.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Entries of the largest chunk; a fuller one is split in halves.
const MOST: usize = 64;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// The map. No chunk is empty, keys rise from chunk to chunk.
#[derive(Clone)]
pub struct Chunks<K, V> {
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Default for Chunks<K, V> {
    fn default() -> Self {
        Chunks {
            chunks: Arc::default(),
            len: 0,
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Chunks<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Chunks<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && (self.is_same(other) || self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for Chunks<K, V> {}

impl<K, V> Chunks<K, V> {
    /// How many entries there are, over all chunks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the map has no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether both share everything: `false` says nothing about what is in them.
    pub fn is_same(&self, other: &Self) -> bool {
        let (here, there) = (&self.chunks, &other.chunks);
        Arc::ptr_eq(here, there)
            || (here.len() == there.len()
                && here
                    .iter()
                    .zip(there.iter())
                    .all(|(a, b)| Arc::ptr_eq(a, b)))
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .map(|(key, value)| (key, value))
    }

    /// All keys, in ascending order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> Chunks<K, V> {
    /// The chunk that has the key, or would have it.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let after = self.chunks.partition_point(|chunk| {
            chunk
                .first()
                .is_some_and(|(first, _)| first.borrow() <= key)
        });
        after.saturating_sub(1)
    }

    /// The value of a key; none where the key is not in the map.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let place = chunk.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        chunk.get(place).map(|(_, value)| value)
    }

    /// Whether the map has an entry for the key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Entries from `key` on, in order.
    pub fn from<'a, Q: Ord + ?Sized>(
        &'a self,
        key: &Q,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V, Q>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        let place = self
            .chunks
            .get(at)
            .map_or(0, |chunk| chunk.partition_point(|(k, _)| k.borrow() < key));
        let chunks = self.chunks.get(at..).unwrap_or_default();
        chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .skip(place)
            .map(|(key, value)| (key, value))
    }
}

impl<K: Ord + Clone, V: Clone> Chunks<K, V> {
    /// Enters a value; the former one is given back.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(place) => Arc::make_mut(chunk)
                .get_mut(place)
                .map(|(_, old)| std::mem::replace(old, value)),
            Err(place) => {
                let chunk = Arc::make_mut(chunk);
                chunk.insert(place, (key, value));
                self.len = self.len.saturating_add(1);
                if chunk.len() > MOST {
                    let upper = chunk.split_off(MOST / 2);
                    chunks.insert(at.saturating_add(1), Arc::new(upper));
                }
                None
            }
        }
    }

    /// Takes a key out; its value is given back.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        let place = self
            .chunks
            .get(at)?
            .binary_search_by(|(k, _)| k.borrow().cmp(key))
            .ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(at)?);
        let (_, value) = chunk.remove(place);
        self.len = self.len.saturating_sub(1);
        if chunk.is_empty() {
            chunks.remove(at);
        }
        Some(value)
    }

    /// Keeps the entries that `stays` says yes to. Chunks that keep all stay shared, and the whole where all do.
    pub fn retain(&mut self, mut stays: impl FnMut(&K, &V) -> bool) {
        for at in 0..self.chunks.len() {
            let Some(chunk) = self.chunks.get(at) else {
                break;
            };
            let kept: Vec<bool> = chunk.iter().map(|(key, value)| stays(key, value)).collect();
            if kept.contains(&false)
                && let Some(chunk) = Arc::make_mut(&mut self.chunks).get_mut(at)
            {
                let mut kept = kept.into_iter();
                Arc::make_mut(chunk).retain(|_| kept.next().unwrap_or(true));
            }
        }
        if self.chunks.iter().any(|chunk| chunk.is_empty()) {
            Arc::make_mut(&mut self.chunks).retain(|chunk| !chunk.is_empty());
        }
        self.len = self.chunks.iter().map(|chunk| chunk.len()).sum();
    }
}

impl<K: Ord, V> Chunks<K, V> {
    /// What differs from `other` by key: the value here, the value there. `same` compares two values; it is not asked
    /// about chunks that both share.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
        same: impl Fn(&V, &V) -> bool,
    ) -> Vec<(&'a K, Option<&'a V>, Option<&'a V>)> {
        let mut found = Vec::new();
        if Arc::ptr_eq(&self.chunks, &other.chunks) {
            return found;
        }
        let (mut here, mut there) = (Cursor::new(&self.chunks), Cursor::new(&other.chunks));
        loop {
            if here.skip_shared(&mut there) {
                continue;
            }
            match (here.peek(), there.peek()) {
                (None, None) => return found,
                (Some((key, value)), None) => {
                    found.push((key, Some(value), None));
                    here.step();
                }
                (None, Some((key, value))) => {
                    found.push((key, None, Some(value)));
                    there.step();
                }
                (Some((key, mine)), Some((other_key, theirs))) => match key.cmp(other_key) {
                    Ordering::Less => {
                        found.push((key, Some(mine), None));
                        here.step();
                    }
                    Ordering::Greater => {
                        found.push((other_key, None, Some(theirs)));
                        there.step();
                    }
                    Ordering::Equal => {
                        if !same(mine, theirs) {
                            found.push((key, Some(mine), Some(theirs)));
                        }
                        here.step();
                        there.step();
                    }
                },
            }
        }
    }
}

/// A place in a map that is walked.
struct Cursor<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    place: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(chunks: &'a [Chunk<K, V>]) -> Self {
        Cursor { chunks, place: 0 }
    }

    fn peek(&self) -> Option<&'a (K, V)> {
        self.chunks.first()?.get(self.place)
    }

    fn step(&mut self) {
        self.place = self.place.saturating_add(1);
        if self
            .chunks
            .first()
            .is_some_and(|chunk| self.place >= chunk.len())
        {
            self.next_chunk();
        }
    }

    fn next_chunk(&mut self) {
        self.chunks = self.chunks.get(1..).unwrap_or_default();
        self.place = 0;
    }

    /// Passes a chunk that both begin here and share.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let shared = self.place == 0
            && other.place == 0
            && matches!((self.chunks.first(), other.chunks.first()), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        if shared {
            self.next_chunk();
            other.next_chunk();
        }
        shared
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Chunks<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut all = Chunks::default();
        all.extend(entries);
        all
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for Chunks<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            let _ = self.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Change = (u16, Option<u8>);

    fn apply(map: &mut Chunks<u16, u8>, twin: &mut BTreeMap<u16, u8>, changes: &[Change]) {
        for (key, value) in changes {
            match value {
                Some(value) => assert_eq!(map.insert(*key, *value), twin.insert(*key, *value)),
                None => assert_eq!(map.remove(key), twin.remove(key)),
            }
        }
    }

    fn changes(keys: u16, most: usize) -> impl Strategy<Value = Vec<Change>> {
        proptest::collection::vec(
            (0..keys, proptest::option::weighted(0.7, any::<u8>())),
            0..most,
        )
    }

    proptest! {
        #[test]
        fn it_is_a_map(first in changes(600, 900), then in changes(600, 40), asked in 0u16..600, odd: bool) {
            let (mut map, mut twin) = (Chunks::default(), BTreeMap::new());
            apply(&mut map, &mut twin, &first);
            let (before, before_twin) = (map.clone(), twin.clone());
            apply(&mut map, &mut twin, &then);
            prop_assert!(map.iter().eq(twin.iter()) && before.iter().eq(before_twin.iter()), "a copy stays as it is");
            prop_assert_eq!((map.len(), map.is_empty()), (twin.len(), twin.is_empty()));
            prop_assert_eq!(map.get(&asked), twin.get(&asked));
            prop_assert!(map.from(&asked).eq(twin.range(asked..)));
            prop_assert_eq!(map == before, twin == before_twin);
            let found: BTreeMap<u16, (Option<u8>, Option<u8>)> = map.differences(&before, |a, b| a == b).into_iter()
                .map(|(key, here, there)| (*key, (here.copied(), there.copied()))).collect();
            let keys = twin.keys().chain(before_twin.keys());
            let slow: BTreeMap<u16, (Option<u8>, Option<u8>)> = keys
                .map(|key| (*key, (twin.get(key).copied(), before_twin.get(key).copied())))
                .filter(|(_, (here, there))| here != there).collect();
            prop_assert_eq!(found, slow);
            map.retain(|key, _| (key % 2 == 1) == odd);
            twin.retain(|key, _| (key % 2 == 1) == odd);
            prop_assert!(map.iter().eq(twin.iter()) && map.len() == twin.len());
        }
    }

    #[test]
    fn a_copy_shares_all_and_a_change_copies_one_chunk() {
        let mut map: Chunks<u32, u32> = (0..50_000).map(|n| (n, n)).collect();
        let before = map.clone();
        assert!(
            Arc::ptr_eq(&map.chunks, &before.chunks),
            "a copy shares all of it"
        );
        map.retain(|_, _| true);
        assert!(
            map.remove(&50_000).is_none() && Arc::ptr_eq(&map.chunks, &before.chunks),
            "and so does one that is not changed"
        );
        map.insert(7, 0);
        map.remove(&40_000);
        let shared = map
            .chunks
            .iter()
            .filter(|chunk| before.chunks.iter().any(|old| Arc::ptr_eq(chunk, old)))
            .count();
        assert_eq!(before.chunks.len() - shared, 2);
        let asked = std::cell::Cell::new(0);
        let count = |a: &u32, b: &u32| {
            asked.set(asked.get() + 1);
            a == b
        };
        assert_eq!(map.differences(&before, count).len(), 2);
        assert!(
            asked.get() <= 2 * MOST,
            "{} entries were compared",
            asked.get()
        );
    }
}
