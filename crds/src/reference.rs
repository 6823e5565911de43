//! The API reference, `docs/api.md`: the CRDs' schemas as tables, for those who read rather than ask `kubectl explain`. Pure: CRDs in, text out.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

const INTRODUCTION: &str = "# API reference

<!-- Written by `cargo xtask codegen` from crds/src. -->

Kinds of the API group `forebay.dev`, version `v1alpha1`. On a cluster, `kubectl explain dataset.spec --recursive` says the same.

- In bold: required fields. Defaults are in the descriptions.
- `quantity` is a Kubernetes quantity such as `500Gi`; `duration` is written as in Go: `90s`, `1h30m`, `168h`.
- Fields marked **not supported yet** exist so that their names are taken; the API server refuses them by name. `kubectl apply` and `kubectl
  create` also refuse fields that are not on this page.
- Some rules can't be said in a schema: folders against the chart's `cacheRoots` and `fileSourceRoots`, and glob patterns. The operator checks
  them and answers with a condition; the reasons are in [guide.md](guide.md).
";

/// A description that begins so is of a field that the API server refuses.
const UNSUPPORTED: &str = "Not supported yet";

/// The page.
pub fn reference(crds: &[CustomResourceDefinition]) -> String {
    let mut page = INTRODUCTION.to_owned();
    for crd in crds {
        // A CRD that was derived always serialises; an empty section would show in the file.
        kind(&mut page, &serde_json::to_value(crd).unwrap_or_default());
    }
    page
}

fn kind(page: &mut String, crd: &Value) {
    let (names, version) = (&crd["spec"]["names"], &crd["spec"]["versions"][0]);
    let schema = &version["schema"]["openAPIV3Schema"];
    let name = text(&names["kind"]);
    let _ = writeln!(page, "\n## {name}\n\n{}\n", text(&schema["description"]));
    let _ = writeln!(page, "Plural `{}`, short name `{}`.\n", text(&names["plural"]), text(&names["shortNames"][0]));
    page.push_str("Columns of `kubectl get`:\n\n| column | field | meaning |\n|---|---|---|\n");
    for column in items(&version["additionalPrinterColumns"]) {
        let (title, path) = (text(&column["name"]), text(&column["jsonPath"]));
        let _ = writeln!(page, "| {title} | `{path}` | {} |", cell(&column["description"]));
    }
    for part in ["spec", "status"] {
        let schema = &schema["properties"][part];
        if schema.is_null() {
            continue;
        }
        let _ = writeln!(page, "\n### {name}: {part}\n\n{}\n", text(&schema["description"]));
        page.push_str("| field | type | constraints | description |\n|---|---|---|---|\n");
        fields(page, schema, part);
    }
    let mut rules = Vec::new();
    collect_rules(schema, "", &mut rules);
    let _ = writeln!(
        page,
        "\n### {name}: rules beyond the schema\n\nAn object that breaks one is refused with its message.\n"
    );
    page.push_str("| at | message |\n|---|---|\n");
    for (path, message) in rules {
        let _ = writeln!(page, "| `{}` | {message} |", if path.is_empty() { "the object" } else { &path });
    }
}

fn fields(page: &mut String, schema: &Value, prefix: &str) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required = |name: &str| items(&schema["required"]).any(|known| known == name);
    let mut sorted: Vec<_> = properties.iter().collect();
    sorted.sort_by_key(|(name, _)| (!required(name), name.as_str()));
    for (name, field) in sorted {
        let path = format!("{prefix}.{name}");
        let shown = if required(name) { format!("**`{path}`**") } else { format!("`{path}`") };
        let description = match cell(&field["description"]) {
            text if text.starts_with(UNSUPPORTED) => format!("**{UNSUPPORTED}**{}", &text[UNSUPPORTED.len()..]),
            text => text,
        };
        if name == "conditions" {
            let _ = writeln!(page, "| {shown} | Condition[] | | {description} |");
            continue;
        }
        let _ = writeln!(page, "| {shown} | {} | {} | {description} |", type_name(field), constraints(field));
        let (below, path) =
            if field["items"].is_null() { (field, path) } else { (&field["items"], format!("{path}[]")) };
        fields(page, below, &path);
    }
}

fn type_name(field: &Value) -> String {
    if field["x-kubernetes-int-or-string"] == true {
        return "quantity".into();
    }
    match (field["type"].as_str(), field["format"].as_str()) {
        (_, Some("date-time")) => "time".into(),
        (Some("array"), _) => format!("{}[]", type_name(&field["items"])),
        (Some("object"), _) if !field["additionalProperties"].is_null() => {
            format!("map of {}", type_name(&field["additionalProperties"]))
        }
        (Some("string"), _) if text(&field["pattern"]).contains("ns|us") => "duration".into(),
        (Some(name), _) => name.into(),
        (None, _) => "string".into(),
    }
}

fn constraints(field: &Value) -> String {
    let mut all = Vec::new();
    let item = if field["items"].is_null() { field } else { &field["items"] };
    let values: Vec<String> = items(&item["enum"]).map(|value| format!("`{}`", text(value))).collect();
    if !values.is_empty() {
        all.push(format!("one of {}", values.join(", ")));
    }
    all.extend(bounds(field, "minItems", "maxItems", " items"));
    if !["quantity", "duration", "time"].contains(&type_name(item).as_str()) {
        all.extend(bounds(item, "minLength", "maxLength", " characters"));
    }
    all.extend(bounds(item, "minimum", "maximum", ""));
    all.join("; ")
}

fn bounds(field: &Value, least: &str, most: &str, unit: &str) -> Option<String> {
    match (field[least].as_f64(), field[most].as_f64()) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}")),
        (Some(least), None) => Some(format!("at least {least}{unit}")),
        (None, Some(most)) => Some(format!("at most {most}{unit}")),
        (None, None) => None,
    }
}

fn collect_rules(schema: &Value, path: &str, rules: &mut Vec<(String, String)>) {
    rules.extend(items(&schema["x-kubernetes-validations"]).map(|rule| (path.to_owned(), cell(&rule["message"]))));
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect_rules(field, &path, rules);
    }
    if schema["items"].is_object() {
        collect_rules(&schema["items"], &format!("{path}[]"), rules);
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

/// A text on one line of a table.
fn cell(value: &Value) -> String {
    text(value).split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
