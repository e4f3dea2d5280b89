//! Taking records from elsewhere: each is judged by the protocol's rules (its `merge`), and what is decided goes into one batch.

use std::collections::{BTreeSet, HashMap};

use larder_protocol::merge::{Here, Verdict, is_renumbered, judge};
use larder_protocol::record::{Key, Numbered, Record, Value};
use larder_protocol::vector::{Origin, VersionVector};

use super::error::Result;
use super::index::{Index, RecordRow, Table};
use super::journal::{Journal, Writing, at_number, journal_key, now_ms, parse, row_key, table_of};
use super::{Applied, conflicts, garbage};

impl Journal {
    /// Merges records from elsewhere; see `Store::apply`.
    pub(super) fn merge(&self, index: &Index, records: Vec<Numbered>, advance: &VersionVector) -> Result<Applied> {
        let (mut applied, mut held, now_ms) = (Applied::default(), BTreeSet::new(), now_ms());
        let mut rounds = rounds(records);
        let last = rounds.pop().unwrap_or_default();
        for round in rounds {
            let mut writing = self.write(index);
            writing.take_all(round, now_ms, &mut applied, &mut held)?;
            writing.commit()?;
        }
        let mut writing = self.write(index);
        writing.take_all(last, now_ms, &mut applied, &mut held)?;
        for (origin, sequence) in advance.iter() {
            // What this node wrote itself is numbered by this node alone.
            if origin != self.origin() && !held.contains(&origin) {
                let sure = writing.sure(&origin, advance);
                writing.vector.advance(origin, sequence.min(sure));
            }
        }
        writing.commit()?;
        conflicts::log(&applied.conflicts);
        Ok(applied)
    }
}

impl Writing<'_> {
    fn take_all(&mut self, records: Vec<Numbered>, now_ms: u64, applied: &mut Applied, held: &mut BTreeSet<Origin>) -> Result<()> {
        for numbered in records {
            let origin = numbered.origin;
            if !self.take(numbered, now_ms, applied)? {
                held.insert(origin);
            }
        }
        applied.conflicts.append(&mut self.conflicts);
        Ok(())
    }

    /// How far an origin may be said to be known, when it has written twice under one number.
    pub(super) fn sure(&self, origin: &Origin, advance: &VersionVector) -> u64 {
        let now = self.moves.forked.iter().filter(|(of, _)| of == origin).map(|(_, sequence)| sequence - 1).min();
        let last_life = self.vector.last_life(&origin.node).max(advance.last_life(&origin.node));
        self.forks().limit(origin, last_life).min(now.unwrap_or(u64::MAX))
    }

    /// Does with a record what is to be done; `false`: it is not taken, and must come again.
    fn take(&mut self, numbered: Numbered, now_ms: u64, applied: &mut Applied) -> Result<bool> {
        let (origin, sequence) = (numbered.origin, numbered.sequence);
        if sequence == 0 || origin == self.origin() {
            // Numbers begin with 1. What another copy of this folder wrote is looked for before (see `incarnation`).
            return Ok(true);
        }
        if let Err(why) = acceptable(&numbered.record) {
            tracing::warn!(?origin, sequence, key = ?numbered.record.key, why, "a record was refused");
            applied.refused += 1;
            return Ok(false);
        }
        let raw = numbered.record.to_raw();
        let standing: Option<RecordRow> = self.index.row(table_of(raw.kind), &row_key(raw.kind, &raw.key))?;
        let at_number = at_number(self.index, &origin, sequence)?;
        let far = self.believes(numbered.record.stamp.time, now_ms).err();
        let here = Here { standing: standing.as_ref().map(|row| &row.record), numbered: at_number.as_ref().map(|row| &row.record) };
        self.compare_starts(&numbered)?;
        let verdict = judge(&raw, here, far.is_some());
        if matches!(verdict, Verdict::Stands | Verdict::Waits) && self.bury(&numbered.record)? {
            applied.changed.push(numbered.record.key);
            return Ok(true);
        }
        match verdict {
            Verdict::Known => self.take_number(standing, RecordRow { origin, sequence, record: raw }),
            Verdict::Lost => {
                let standing = standing.expect("something is later");
                self.came_late(&numbered.record, &parse(&standing.record)?)?;
            }
            Verdict::Waits => {
                // The same writer has said otherwise in a later life: its clock is right again.
                let taken_back = standing.is_some_and(|row| row.origin.node == origin.node && row.origin.incarnation > origin.incarnation);
                if taken_back {
                    return Ok(true);
                }
                if self.waiting().is_full() || self.moves.waiting.len() >= super::quarantine::WAITING_MAX {
                    tracing::warn!(?origin, sequence, "a record from the future was refused: too many wait for their time already");
                    applied.refused += 1;
                    return Ok(false);
                }
                if self.waiting().len() == 0 && applied.quarantined == 0 {
                    tracing::warn!(
                        ?origin,
                        stamp = numbered.record.stamp.time.ms(),
                        now_ms,
                        "a record lies in the future and waits until its time: the clock of the node that wrote it is wrong, or this one's; `larder status --json` \
                         lists all that wait"
                    );
                }
                applied.quarantined += 1;
                self.put_aside(&numbered);
            }
            Verdict::Forked => {
                applied.forked += 1;
                let sure = self.starts_of(&origin)?.before(sequence);
                self.mix(origin, sure)?;
                if self.forked(&numbered, &at_number.expect("another is there").record)? {
                    tracing::warn!(
                        ?origin,
                        sequence,
                        "a node wrote two records under one number: a clone of it runs, or it was restored from a copy, or it lies; both are kept, and \
                         `larder status --json` lists them"
                    );
                }
            }
            Verdict::Stands if standing.is_none() && self.is_over_quota(&origin.node) => {
                applied.refused += 1;
                applied.over_quota += 1;
                return Ok(false);
            }
            Verdict::Stands => {
                let key = numbered.record.key.clone();
                // A reader leaves that to the writers.
                if !self.is_reader()
                    && let Some(link) = self.needed(&numbered.record)?
                {
                    // What is written now beats the tombstone, which so need not stand here at all.
                    tracing::debug!(?key, "a link was collected elsewhere that a manifest needs; it is written anew");
                    self.record(key, Some(link))?;
                    return Ok(true);
                }
                let stands = self.stand_under_a_sure_number(numbered)?;
                assert!(stands, "it was judged to");
                applied.changed.push(key);
            }
        }
        Ok(true)
    }

    /// Lets a record stand; under a number of this node's, when another copy of its data folder may have given its number to something else: others would
    /// never ask for this.
    pub(super) fn stand_under_a_sure_number(&mut self, mut numbered: Numbered) -> Result<bool> {
        if self.lives().is_unsure(&numbered.origin, numbered.sequence) {
            let own = self.origin();
            (numbered.origin, numbered.sequence) = (own, self.next_number(own)?);
        }
        self.stand(numbered)
    }

    /// Gives a record that stands the number that its writer has given it in a later life.
    fn take_number(&mut self, standing: Option<RecordRow>, row: RecordRow) {
        let Some(before) = standing.filter(|before| before.record == row.record && is_renumbered(&before.origin, &row.origin)) else {
            return;
        };
        self.index.delete(&mut self.batch, Table::Journal, &journal_key(&before.origin, before.sequence));
        self.place(Some(&before), row);
    }

    /// The link that a tombstone from elsewhere would take away as garbage, when a manifest needs it: it was pushed where the garbage
    /// was collected after that was decided.
    fn needed(&self, tombstone: &Record) -> Result<Option<Value>> {
        let (Key::Link(repository, digest), None) = (&tombstone.key, &tombstone.value) else { return Ok(None) };
        let Some(standing) = self.standing(&tombstone.key)?.filter(|standing| garbage::retires(tombstone, standing)) else {
            return Ok(None);
        };
        Ok(if garbage::is_needed(self.index, repository, digest)? { standing.value } else { None })
    }
}

/// What a peer may say: its bytes must be what its key names.
fn acceptable(record: &Record) -> std::result::Result<(), String> {
    match (&record.key, &record.value) {
        (Key::Manifest(_, digest), Some(Value::Manifest(manifest))) => {
            let actual = larder_protocol::digest::Digest::of(digest.algorithm(), &manifest.bytes);
            if actual == *digest { Ok(()) } else { Err(format!("its manifest has digest {actual}")) }
        }
        _ => Ok(()),
    }
}

/// Records to be taken one round after the other: a writing does not see what it has written itself, so it has each key and each number once. An
/// honest peer's are one round, nearly always. Of one key, the earlier comes first.
fn rounds(mut records: Vec<Numbered>) -> Vec<Vec<Numbered>> {
    records.sort_by_key(|numbered| numbered.record.stamp);
    let (mut keys, mut numbers) = (HashMap::<Key, usize>::new(), HashMap::<(Origin, u64), usize>::new());
    let mut rounds: Vec<Vec<Numbered>> = Vec::new();
    for numbered in records {
        let key = keys.entry(numbered.record.key.clone()).or_default();
        let number = numbers.entry((numbered.origin, numbered.sequence)).or_default();
        let round = (*key).max(*number);
        (*key, *number) = (round + 1, round + 1);
        if round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[round].push(numbered);
    }
    rounds
}
