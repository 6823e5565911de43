//! How many bytes of a trace the eviction policy saves, beside other policies.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{Context, Outcome, missing};
use crate::programs::{Line, figures};
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::Sample;

pub const NAME: &str = "hit-ratios";
pub const HOW: &str = "\
`cache-node/examples/eviction.rs` replays traces on the store's own eviction plan (S3-FIFO) and on other policies, the optimum (Belady's) among
them, with caches of several sizes. Traces and plan are deterministic, so one run is all.";

/// The store's own plan; what it is called after is another policy on the list.
const OURS: &str = "ours";

pub async fn measure(context: &Context) -> Result<Outcome> {
    let Some(example) = context.programs.example("eviction") else { return Ok(missing("eviction")) };
    let folder = context.folder.part(NAME)?;
    let lines = figures(&example, &[], folder.path()).await?;
    rows(&lines).map(Outcome::Rows)
}

/// A row for each trace and cache size and other policy, in bytes; against LRU more is required where a scan pollutes the trace.
fn rows(lines: &[Line]) -> Result<Vec<Row>> {
    let mut by_case: BTreeMap<(String, String), BTreeMap<String, f64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.contains_key("policy")) {
        let field = |key: &str| line.get(key).cloned().with_context(|| format!("a line without {key}=: {line:?}"));
        let ratio: f64 = field("bytes")?.parse().with_context(|| format!("no number: {line:?}"))?;
        by_case.entry((field("trace")?, field("share")?)).or_default().insert(field("policy")?, ratio);
    }
    let mut rows = Vec::new();
    for ((trace, share), policies) in by_case {
        let ours = policies.get(OURS).with_context(|| format!("trace {trace} was not replayed on {OURS}"))?;
        for (policy, ratio) in policies.iter().filter(|(policy, _)| policy.as_str() != OURS) {
            let (Some(ours), Some(theirs)) = (Sample::one(*ours), Sample::one(*ratio)) else { continue };
            let required =
                if policy == "lru" && trace.contains("scan") { Required::MoreThanLimit } else { Required::Nothing };
            rows.push(Row {
                what: format!("hit ratio, {trace}, cache of {share} %"),
                unit: Unit::Share,
                ours,
                limit: Some(Limit { what: policy.clone(), sample: theirs }),
                required,
            });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::parse;

    #[test]
    fn each_policy_is_compared_with_ours_on_the_same_trace() {
        let lines: Vec<_> = [
            "bench=eviction trace=zipf-scan share=10 policy=ours objects=0.6 bytes=0.5",
            "bench=eviction trace=zipf-scan share=10 policy=lru objects=0.5 bytes=0.4",
            "bench=eviction trace=epochs share=10 policy=ours objects=0.1 bytes=0.1",
            "bench=eviction trace=epochs share=10 policy=lru objects=0.1 bytes=0.2",
        ]
        .into_iter()
        .filter_map(parse)
        .collect();
        let rows = rows(&lines).unwrap();
        let summary: Vec<_> = rows.iter().map(|row| (row.what.as_str(), row.met())).collect();
        assert_eq!(
            summary,
            [("hit ratio, epochs, cache of 10 %", None), ("hit ratio, zipf-scan, cache of 10 %", Some(true))]
        );
        assert!(super::rows(&lines[1..2]).is_err(), "ours is missing");
    }
}
