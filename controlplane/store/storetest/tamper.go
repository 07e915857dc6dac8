package storetest

import (
	"net/url"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// Tamper gives do what etcd holds in the data directory of a server that is down, as somebody has it who can write to etcd.
func Tamper(t testing.TB, dir string, do func(clientv3.KV)) {
	t.Helper()
	ec := embed.NewConfig()
	ec.Name, ec.Dir = "keyplane", filepath.Join(dir, "etcd")
	ec.ListenPeerUrls, ec.ListenClientUrls = nil, nil
	ec.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	ec.AdvertiseClientUrls = ec.AdvertisePeerUrls
	ec.InitialCluster = ec.InitialClusterFromName(ec.Name)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	etcd, err := embed.StartEtcd(ec)
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	<-etcd.Server.ReadyNotify()
	client := v3client.New(etcd.Server)
	defer client.Close()
	do(client.KV)
}
