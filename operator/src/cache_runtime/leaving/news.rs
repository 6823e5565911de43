//! What is worth an Event about cache nodes that leave. Pure: the last status and the departures of now, so that each is told once.

use std::collections::BTreeMap;

use forebay_crds::{MemberState, MemberStatus};

use super::{Departure, Handover};
use crate::events::News;

/// What is new since the `old` members were written. `members` are those of now.
pub fn news(old: &[MemberStatus], members: &[MemberStatus], departures: &BTreeMap<String, Departure>) -> Vec<News> {
    members.iter().filter_map(|member| of_member(old, member, departures.get(&member.pod))).collect()
}

fn of_member(old: &[MemberStatus], member: &MemberStatus, departure: Option<&Departure>) -> Option<News> {
    let before = old.iter().find(|old| old.pod == member.pod && old.id == member.id).and_then(|old| old.state);
    let who = format!("the cache node {} on node {}", member.pod, member.node);
    let Some(departure) = departure else {
        let note = format!("{who} stays: it is wanted again");
        return (before == Some(MemberState::Leaving)).then(|| News::normal("NodeStays", &member.pod, note));
    };
    let held = member.cached.as_deref().unwrap_or("0");
    match (&departure.handover, before) {
        (Handover::Waits(_), Some(MemberState::Leaving | MemberState::Left))
        | (Handover::Done | Handover::GivenUp(_), Some(MemberState::Left)) => None,
        (Handover::Waits(_), _) => {
            let note = format!("{who} leaves and hands over what it holds ({held}): {}", departure.why);
            Some(News::normal("NodeLeaving", &member.pod, note))
        }
        (Handover::Done, _) => {
            let note = format!("{who} has handed over what it held; its pod ends: {}", departure.why);
            Some(News::normal("NodeLeft", &member.pod, note))
        }
        (Handover::GivenUp(waits), _) => {
            let note = format!(
                "{who} leaves although {} of what it held are not with the others, for its time is up since it was asked at {} ({waits}); they are \
                 fetched from the source again when they are needed. More time: the annotation {} of the CacheRuntime",
                departure.remaining,
                departure.since,
                crate::cache_runtime::validate::DRAIN_PATIENCE_ANNOTATION
            );
            Some(News::warning("NodeLeftEarly", &member.pod, note))
        }
    }
}
