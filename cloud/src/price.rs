//! What machines cost: Amazon's price list, and EC2's history of spot prices.

use roxmltree::Node;
use serde_json::{json, Value};

use crate::body::Body;
use crate::ec2::{parameters, text, Ec2};
use crate::http::{Client, Request};
use crate::{Config, Result, Service};

/// What an hour of a machine costs, without its disk and its traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    /// Of the currency, an hour.
    pub amount: f64,
    /// `USD`, or `CNY` in China.
    pub currency: String,
}

impl Price {
    /// Of a machine of this type with Linux in the configured region, by the price list; `None` when that has none, or
    /// the cloud is not Amazon's.
    ///
    /// # Errors
    /// The price list cannot be reached, or refuses.
    pub fn on_demand(config: &Config, kind: &str) -> Result<Option<Self>> {
        let Some(at) = config.of_price_list() else {
            return Ok(None);
        };
        let client = Client::new(Service::Pricing, &at)?;
        let operation = "GetProducts";
        let filters = [
            ("instanceType", kind),
            ("regionCode", &config.region),
            ("operatingSystem", "Linux"),
            ("tenancy", "Shared"),
            ("preInstalledSw", "NA"),
            ("capacitystatus", "Used"),
        ];
        let filters = filters
            .map(|(field, value)| json!({"Type": "TERM_MATCH", "Field": field, "Value": value}));
        let body =
            json!({"ServiceCode": "AmazonEC2", "FormatVersion": "aws_v1", "Filters": filters});
        let answer = client.call(&Request {
            operation,
            method: "POST",
            path: String::from("/"),
            headers: vec![
                ("content-type", String::from("application/x-amz-json-1.1")),
                ("x-amz-target", format!("AWSPriceListService.{operation}")),
            ],
            query: String::new(),
            body: Body::Bytes(body.to_string().as_bytes()),
            signs_body: true,
        })?;
        let answer: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| client.malformed(operation, error.to_string()))?;
        Ok(dearest(listed(&answer)))
    }

    /// Of a spot machine of this type now, where it is dearest in the region.
    ///
    /// # Errors
    /// The cloud cannot be reached, or refuses.
    pub fn spot(ec2: &Ec2, kind: &str, now: &str) -> Result<Option<Self>> {
        let parameters = parameters(&[
            ("InstanceType.1", kind),
            ("ProductDescription.1", "Linux/UNIX"),
            // From then on: the prices that are still good, one in each zone.
            ("StartTime", now),
        ]);
        let set = "spotPriceHistorySet";
        let read = |item: Node<'_, '_>| text(item, "spotPrice")?.parse().ok();
        let all: Vec<Option<f64>> = ec2.list("DescribeSpotPriceHistory", parameters, set, read)?;
        let prices = all.into_iter().flatten().map(|amount| Price {
            amount,
            currency: String::from("USD"),
        });
        Ok(dearest(prices.collect()))
    }
}

/// Of prices that are some.
fn dearest(prices: Vec<Price>) -> Option<Price> {
    let some = prices
        .into_iter()
        .filter(|price| price.amount.is_finite() && price.amount > 0.0);
    some.max_by(|one, other| one.amount.total_cmp(&other.amount))
}

/// Hourly prices on demand in an answer. Its products are JSON within JSON.
fn listed(answer: &Value) -> Vec<Price> {
    let members = |value: &Value| -> Vec<Value> {
        let object = value.as_object();
        object.map_or(Vec::new(), |object| object.values().cloned().collect())
    };
    let products = answer["PriceList"].as_array().cloned().unwrap_or_default();
    let products = products.iter().filter_map(|text| {
        let product: Value = serde_json::from_str(text.as_str()?).ok()?;
        Some(product)
    });
    let terms = products.flat_map(|product| members(&product["terms"]["OnDemand"]));
    let dimensions = terms.flat_map(|term| members(&term["priceDimensions"]));
    let hourly = dimensions.filter(|dimension| dimension["unit"] == "Hrs");
    let prices = hourly.filter_map(|dimension| {
        let (currency, amount) = dimension["pricePerUnit"].as_object()?.iter().next()?;
        Some(Price {
            amount: amount.as_str()?.parse().ok()?,
            currency: currency.clone(),
        })
    });
    prices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_price_of_an_hour_is_read() {
        let product = |unit: &str, amount: &str| {
            let text = json!({
                "product": {"sku": "X", "attributes": {"instanceType": "t3.small"}},
                "terms": {
                    "OnDemand": {"X.Y": {"priceDimensions": {"X.Y.Z": {
                        "unit": unit, "pricePerUnit": {"USD": amount}, "description": "an hour",
                    }}}},
                    "Reserved": {"X.R": {"priceDimensions": {"X.R.Z": {
                        "unit": "Hrs", "pricePerUnit": {"USD": "9.0"},
                    }}}},
                },
            });
            text.to_string()
        };
        let answer =
            |products: &[String]| json!({"FormatVersion": "aws_v1", "PriceList": products});
        let price = |products: &[String]| dearest(listed(&answer(products)));
        let found = price(&[
            product("Hrs", "0.0208000000"),
            product("Quantity", "5"),
            product("Hrs", "0.0000000000"),
        ]);
        let expected = Price {
            amount: 0.0208,
            currency: String::from("USD"),
        };
        assert_eq!(found, Some(expected));
        for none in [
            &[][..],
            &[String::from("{")],
            &[String::from("{}")],
            &[product("Hrs", "inf")],
            &[product("Hrs", "much")],
        ] {
            assert_eq!(price(none), None, "{none:?}");
        }
        assert!(listed(&json!({"PriceList": [7]})).is_empty());
    }
}
