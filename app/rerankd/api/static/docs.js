// Where this page came from is where the service is, whatever a proxy puts before its paths. Without a validator, which
// would be asked on the network.
const base = new URL(".", location.href);

fetch(new URL("openapi.json", base))
  .then((answer) => answer.json())
  .then((spec) => {
    SwaggerUIBundle({
      spec: { ...spec, servers: [{ url: base.pathname.replace(/\/$/, "") || "/" }] },
      dom_id: "#operations",
      deepLinking: true,
      validatorUrl: null,
    });
  });
