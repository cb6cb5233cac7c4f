// Classifies photos with a Pawprint server, in one Classify call.
//
//   node classify.js [--address HOST:PORT] --model NAME [--version V] [--top-k K]
//     [--tls] [--tls-ca FILE] [--tls-cert FILE --tls-key FILE] PHOTO...
//
// If the server wants a token, set PAWPRINT_TOKEN in the environment.

"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { parseArgs } = require("node:util");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const ROOT = path.resolve(__dirname, "../..");
const TIMEOUT_MS = 30_000;

// Not encrypted without a flag for TLS. The authority is one that Node knows, unless it is given.
function credentials(values) {
  const files = ["tls-ca", "tls-key", "tls-cert"].map((flag) => values[flag]);
  if (!values.tls && !files.some(Boolean)) {
    return grpc.credentials.createInsecure();
  }
  return grpc.credentials.createSsl(...files.map((file) => (file ? fs.readFileSync(file) : null)));
}

function metadata() {
  const sent = new grpc.Metadata();
  if (process.env.PAWPRINT_TOKEN) {
    sent.set("authorization", `Bearer ${process.env.PAWPRINT_TOKEN}`);
  }
  return sent;
}

function connect(address, channelCredentials) {
  const definition = protoLoader.loadSync("protos/pawprint/v1/classifier.proto", {
    includeDirs: [ROOT],
    oneofs: true, // result.outcome says which of the two is there
    defaults: true, // a label of index 0 has its index
  });
  const { ClassifierService } = grpc.loadPackageDefinition(definition).pawprint.v1;
  return new ClassifierService(address, channelCredentials, {
    "grpc.max_send_message_length": -1,
  });
}

function classify(client, request) {
  const deadline = Date.now() + TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    client.classify(request, metadata(), { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

function line(photo, result) {
  if (result.outcome === "error") {
    return `${photo}: error: ${result.error.message}`;
  }
  const { labels, unfamiliar } = result.classification;
  const mark = unfamiliar ? "unfamiliar: " : ""; // the labels mean nothing
  return `${photo}: ${mark}${labels.map((l) => `${l.name} ${l.probability.toFixed(4)}`).join(", ")}`;
}

async function main() {
  const { values, positionals: photos } = parseArgs({
    allowPositionals: true,
    options: {
      address: { type: "string", default: "localhost:50051" },
      model: { type: "string" },
      version: { type: "string", default: "" },
      "top-k": { type: "string", default: "1" },
      tls: { type: "boolean", default: false },
      "tls-ca": { type: "string" },
      "tls-cert": { type: "string" },
      "tls-key": { type: "string" },
    },
  });
  if (!values.model || photos.length === 0) {
    throw new Error("say which model and photos: classify.js --model NAME PHOTO...");
  }
  const client = connect(values.address, credentials(values));
  try {
    const response = await classify(client, {
      model: values.model,
      version: values.version,
      images: photos.map((photo) => fs.readFileSync(photo)),
      topK: Number(values["top-k"]),
    });
    response.results.forEach((result, i) => console.log(line(photos[i], result)));
    return response.results.every((result) => result.outcome !== "error") ? 0 : 1;
  } finally {
    client.close();
  }
}

main().then(
  (status) => {
    process.exitCode = status;
  },
  (error) => {
    // error.code is a gRPC status where the server, or the way to it, refused the call.
    console.error(`error: ${error.details || error.message}`);
    process.exitCode = 2;
  },
);
