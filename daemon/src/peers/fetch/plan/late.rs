//! What is late, and what is done then: a second ask elsewhere, or a peer that is left.
//!
//! Of a peer in this zone a chunk is late by the time that chunks take. What crosses from another zone shares a line with others that this node
//! knows nothing of: there a chunk may wait for minutes behind them, and is late when its peer gives nothing at all, of this blob or another.

use super::*;

/// How long a chunk of one MiB may take before it is asked for elsewhere, too.
const CHUNK_LATE: Duration = Duration::from_secs(4);
/// The same for a chunk of which bytes have come, and then none.
const SILENCE: Duration = Duration::from_millis(700);
/// After so long it counts as lost.
const SILENCE_LONG: Duration = Duration::from_secs(2);
/// How long a chunk that comes to another node is waited for. A node with less weight waits longer.
const PATIENCE: Duration = Duration::from_secs(4);
const PATIENCE_MAX: Duration = Duration::from_secs(20);
/// The same in times of what a chunk takes from the slowest peer.
const PATIENT_FOR: u32 = 3;
/// How long nothing may come from a peer of another zone until what is asked of it is late, and when something was begun. It is waited for as long
/// at least for what crosses to another node, and at most for so long.
const FAR_LATE: Duration = Duration::from_secs(15);
const FAR_SILENCE: Duration = Duration::from_secs(2);
const FAR_PATIENCE_MAX: Duration = Duration::from_secs(120);
/// Second asks of chunks that are late.
const HEDGES_MAX: usize = 2;
/// At the end of a blob, a chunk that takes longer is late.
const END_LATE: Duration = Duration::from_secs(1);
/// From who is asked for something, a byte has to come within this time, and so much in that time.
const STALL: Duration = Duration::from_secs(10);
const TRICKLE_TIME: Duration = Duration::from_secs(20);
const TRICKLE_BYTES: u64 = 80 << 10;
/// How often a peer may be silent for that long, without a chunk between, and how long it is then not asked.
pub(super) const STALLS_MAX: u32 = 2;
const REST: Duration = Duration::from_secs(2);

/// How badly an ask is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Late {
    /// It is among the last of the blob, and others come faster.
    Last,
    Overdue,
    /// Bytes have come, and then none.
    Silent,
    /// Next to nothing comes.
    Hardly,
}

impl Plan {
    /// Sets how long it is waited for others.
    pub(super) fn be_patient(&mut self, now: Duration) {
        let slowest = self.sources.values().filter(|(_, source)| !source.left).map(|(_, source)| source.took()).max();
        let (least, most) = if self.is_near() { (PATIENCE, PATIENCE_MAX) } else { (FAR_LATE, FAR_PATIENCE_MAX) };
        // What this node waits for itself may take others as long.
        let far = self.asks.values().filter(|ask| !self.sources[&ask.peer].1.peer.near).map(|ask| now.saturating_sub(ask.at)).max();
        self.patience = (slowest.max(far).unwrap_or_default() * PATIENT_FOR).clamp(least, most);
    }

    /// Leaves peers from which hardly anything comes. One that has begun
    /// nothing of what it was asked for may have too many to serve: it is asked again after a rest.
    pub(super) fn leave_stalled(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let mut stalled = Vec::new();
        let in_the_middle: BTreeSet<_> = self.asks.values().filter(|ask| ask.bytes > 0).map(|ask| ask.peer).collect();
        for (node, (_, source)) in &mut self.sources {
            let Some((since, came)) = source.busy else { continue };
            let stall = if source.peer.near { STALL } else { FAR_LATE };
            let silent = now.saturating_sub(since.max(source.heard)) >= stall;
            if silent && source.stalls < STALLS_MAX && !in_the_middle.contains(node) {
                source.stalls += 1;
                source.rests_until = now + REST;
                stalled.push((*node, false));
            } else if silent || (now.saturating_sub(since) >= TRICKLE_TIME && came < TRICKLE_BYTES) {
                stalled.push((*node, true));
            } else if now.saturating_sub(since) >= TRICKLE_TIME {
                source.busy = Some((now, 0));
            }
        }
        for (node, for_good) in stalled {
            actions.push(Action::Strike(node));
            if for_good {
                self.leave(now, node, actions);
            } else {
                self.give_up(now, node, actions);
            }
        }
    }

    /// Asks elsewhere, too, for what is late.
    pub(super) fn hedge(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let is_end = self.asked.len() as u32 == self.have.count() - self.have.len();
        let mut hedges = self.asks.values().filter(|ask| ask.is_hedge).count();
        let alone = self.asks.iter().filter(|(_, ask)| self.asked.get(&ask.index).is_some_and(|asks| asks.len() == 1));
        let late: Vec<_> = alone.filter_map(|(id, ask)| Some((*id, *ask, self.lateness(now, ask, is_end)?))).collect();
        for (id, ask, late) in late {
            if hedges >= HEDGES_MAX && late < Late::Silent {
                continue;
            }
            let said = self.said(ask.index, now);
            // For what is only late, neither who is far is bothered, nor who gave it to others already: it comes.
            let fits = |node: &NodeId, source: &Source| {
                let is_other = *node != ask.peer && source.has(ask.index) && source.is_free(now) && !said.contains(node);
                is_other && (late >= Late::Silent || source.peer.near && source.is_relay)
            };
            let relay = self.best(ask.index, |node, source| fits(node, source) && source.peer.near && source.is_relay);
            let Some(peer) = relay.or_else(|| self.best(ask.index, fits)) else { continue };
            if late > Late::Last && !ask.doubted {
                self.asks.get_mut(&id).expect("looked at just now").doubted = true;
                self.sources.get_mut(&ask.peer).expect("asks are of sources").1.outstanding -= 1;
            }
            self.hedges += 1;
            hedges += 1;
            self.ask(now, peer, ask.index, relay.is_some() || late == Late::Hardly, true, actions);
        }
    }

    /// Whether an ask is late, and how badly.
    fn lateness(&self, now: Duration, ask: &Ask, is_end: bool) -> Option<Late> {
        let source = &self.sources.get(&ask.peer)?.1;
        let (silence, age) = (now.saturating_sub(source.heard.max(ask.at)), now.saturating_sub(ask.at));
        let (is_late, short) = match source.peer.near {
            true => (age > CHUNK_LATE.max(source.took() * 3), SILENCE),
            false => (silence > FAR_LATE, FAR_SILENCE),
        };
        if (ask.bytes > 0 && silence > SILENCE_LONG.max(short * 2)) || (is_late && source.is_trickle(now)) {
            Some(Late::Hardly)
        } else if ask.bytes > 0 && silence > short.max(source.peer.rtt * 4) {
            Some(Late::Silent)
        } else if is_late {
            Some(Late::Overdue)
        } else if is_end && age > END_LATE.max(source.took() * 2) {
            Some(Late::Last)
        } else {
            None
        }
    }
}
