package main

import (
	"context"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var controllerService = &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
	Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
}}

// controller hands out volumes of one Dataset.
type controller struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedIdentityServer
	uid        string
	attributes map[string]string
	mutex      sync.Mutex
	// The capacity of each volume, by its id.
	volumes map[string]int64
}

func newController(uid string, attributes map[string]string) *controller {
	return &controller{uid: uid, attributes: attributes, volumes: map[string]int64{}}
}

func (c *controller) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if request.Name == "" || len(request.VolumeCapabilities) == 0 {
		return nil, status.Error(codes.InvalidArgument, "name or capabilities are missing")
	}
	// Several volumes may show one Dataset: their ids begin with its UID.
	id := c.uid + "/" + request.Name
	capacity := request.CapacityRange.GetRequiredBytes()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if existing, ok := c.volumes[id]; ok && existing != capacity {
		return nil, status.Error(codes.AlreadyExists, "there is one of this name with another capacity")
	}
	c.volumes[id] = capacity
	volume := &csi.Volume{VolumeId: id, CapacityBytes: capacity, VolumeContext: c.attributes}
	return &csi.CreateVolumeResponse{Volume: volume}, nil
}

func (c *controller) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if request.VolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id is missing")
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.volumes, request.VolumeId)
	return &csi.DeleteVolumeResponse{}, nil
}

func (c *controller) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if request.VolumeId == "" || len(request.VolumeCapabilities) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume_id or capabilities are missing")
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if _, ok := c.volumes[request.VolumeId]; !ok {
		return nil, status.Error(codes.NotFound, "there is no such volume")
	}
	confirmed := &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: request.VolumeCapabilities}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: confirmed}, nil
}

func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	rpc := &csi.ControllerServiceCapability_RPC{Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}
	capability := &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: rpc}}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{capability}}, nil
}

func (c *controller) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: "controller.sanity.forebay.dev", VendorVersion: "1"}, nil
}

func (c *controller) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{controllerService}}, nil
}

func (c *controller) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}
