//! Hit ratios of eviction policies on traces, as a table and as `key=value` lines.

use forebay_cache_node::store::eviction::{policies, traces};

fn main() {
    let traces = traces::all();
    let mut lines = Vec::new();
    println!("Hit ratio of objects / of bytes, in percent.\n");
    let names: Vec<_> = traces.iter().map(|trace| format!("{} {} %", trace.name, trace.share)).collect();
    let Some(first) = traces.first() else { return };
    let policies: Vec<_> = policies::all(first, 1).into_iter().map(|(name, _)| name).collect();
    println!("| trace, cached share | {} |", policies.join(" | "));
    println!("|---|{}", "---:|".repeat(policies.len()));
    for (trace, name) in traces.iter().zip(names) {
        let mut cells = Vec::new();
        for (policy, mut cache) in policies::all(trace, trace.capacity) {
            let hits = trace.run_with(cache.as_mut());
            cells.push(format!("{:.1} / {:.1}", hits.objects * 100.0, hits.bytes * 100.0));
            lines.push(format!(
                "bench=eviction trace={} share={} policy={policy} objects={:.4} bytes={:.4}",
                trace.name, trace.share, hits.objects, hits.bytes
            ));
        }
        println!("| {name} | {} |", cells.join(" | "));
    }
    println!();
    for line in &lines {
        println!("{line}");
    }
}
